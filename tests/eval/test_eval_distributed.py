"""Evaluation by several processes at once, one of which is slow."""

import multiprocessing
import os
import time
from collections import Counter
from operator import itemgetter

import pytest
import torch
from accelerate import PartialState
from benchmark_folders import benchmark, lines
from ports import free_port
from transformers import AutoProcessor
from typer.testing import CliRunner

import pllava
from pllava.distributed import WorkClaims
from pllava.eval import LocalModel, Variant, collect, evaluate, join_processes, read_samples
from pllava.files import read_lines
from pllava.nano.world.rendering import render
from pllava_cli import app

by_id = itemgetter("id")
VARIANT = Variant("one_frame", control="one_frame")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    render(folder, clips=10, seed=3)
    return folder


@pytest.fixture(scope="module")
def model():
    processor = AutoProcessor.from_pretrained(pllava.NANO)
    return LocalModel(pllava.load_model(pllava.NANO), processor, batch_size=2, num_workers=0)


def become(rank, port):
    """Set the environment of one of two launched processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    PartialState._reset_state()


def slow_down(model, seconds):
    answer = model.generator.answer
    model.generator.answer = lambda *arguments: time.sleep(seconds) or answer(*arguments)


def collect_as(rank, port, model, samples, out, queue):
    """Collect answers as one of two processes; rank 0 is slow."""
    become(rank, port)
    state = join_processes()
    if rank == 0:
        slow_down(model, 0.2)
    collected = collect(benchmark("nano"), model, samples, out, [VARIANT])
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    queue.put((rank, state.num_processes, collected.time["answered"], group.options._timeout.total_seconds()))


def test_faster_process_gives_more_answers(model, world, tmp_path):
    """Each answer is given once, and together they are those of a single process."""
    samples = read_samples(benchmark("nano"), str(world))
    evaluate(benchmark("nano"), model, str(world), tmp_path / "alone", [VARIANT])
    (tmp_path / "together" / "nano" / "claims").mkdir(parents=True)
    (tmp_path / "together" / "nano" / "claims" / "0").touch()  # left by a killed run
    context, port = multiprocessing.get_context("fork"), str(free_port())
    queue = context.Queue()
    arguments = (port, model, samples, tmp_path / "together", queue)
    processes = [context.Process(target=collect_as, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    results = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    ranks, sizes, answered, timeouts = zip(*results, strict=True)
    assert (ranks, sizes) == ((0, 1), (2, 2)) and min(timeouts) >= 3600
    assert sum(answered) == len(samples) and 0 < answered[0] < answered[1]
    folder = tmp_path / "together" / "nano" / "one_frame"
    rows = [row for file in folder.glob("predictions*.jsonl") for row in read_lines(file)]
    assert sorted(rows, key=by_id) == sorted(lines(tmp_path / "alone" / "nano" / "one_frame"), key=by_id)
    assert not (tmp_path / "together" / "nano" / "claims").exists()


def evaluate_slowly(model, world, out, queue):
    slow_down(model, 0.2)
    queue.put(evaluate(benchmark("nano"), model, str(world), out, [VARIANT], limit=2)[VARIANT.name]["coverage"])


def test_second_run_into_the_same_folder_is_refused(model, world, tmp_path, monkeypatch):
    """It would claim pieces of the first run's work. It may follow when the first is done."""
    monkeypatch.setattr("pllava.files.LOCK_TIMEOUT", 0)
    out, variants = tmp_path / "out", [Variant("reversed", control="reversed")]
    (tmp_path / "link").symlink_to(out)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=evaluate_slowly, args=(model, world, out, queue))
    process.start()
    while not list(out.rglob("predictions.jsonl")):
        time.sleep(0.01)
    with pytest.raises(ValueError, match=rf"process {process.pid} on .* is writing .*nano: wait for it, or"):
        evaluate(benchmark("nano"), model, str(world), tmp_path / "link", variants, limit=2)
    assert queue.get(timeout=60) == 1
    process.join()
    assert evaluate(benchmark("nano"), model, str(world), out, variants, limit=2)["reversed"]["coverage"] == 1


def rescore_as(rank, port, out, queue):
    become(rank, port)
    finished = CliRunner().invoke(app, ["eval", "--rescore", str(out)])
    queue.put((rank, finished.exit_code, finished.stdout.count("coverage")))


def test_only_the_main_process_rescores(model, world, tmp_path):
    evaluate(benchmark("nano"), model, str(world), tmp_path, limit=1)
    context, port = multiprocessing.get_context("fork"), str(free_port())
    queue = context.Queue()
    processes = [context.Process(target=rescore_as, args=(rank, port, tmp_path, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == [(0, 0, 1), (1, 0, 0)]
    for process in processes:
        process.join()


def claim_all(folder, pieces, queue):
    claims = WorkClaims(folder)
    queue.put([piece for piece in range(pieces) if claims.claim(piece) and claims.claim(piece)])


def test_each_piece_is_claimed_by_one_process(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=claim_all, args=(tmp_path, 300, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    claimed = Counter(piece for _ in processes for piece in queue.get(timeout=60))
    assert claimed == Counter(range(300))
    for process in processes:
        process.join()
