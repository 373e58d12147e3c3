"""Several processes that evaluate together: real ones, of which one is slow."""

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
from pllava.eval import LocalModel, Variant, collect, evaluate, join_processes, read_samples
from pllava.eval.distributed import Shares
from pllava.files import read_lines
from pllava.nano.data import render
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
    """One of two processes, as they are launched."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    PartialState._reset_state()


def slow_down(model, seconds):
    answer = model.generator.answer
    model.generator.answer = lambda *arguments: time.sleep(seconds) or answer(*arguments)


def take_part(rank, port, model, samples, out, found):
    """What a process does, the first of them slowly."""
    become(rank, port)
    state = join_processes()
    if rank == 0:
        slow_down(model, 0.2)
    collected = collect(benchmark("nano"), model, samples, out, [VARIANT])
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    found.put((rank, state.num_processes, collected.time["answered"], group.options._timeout.total_seconds()))


def test_processes_share_the_work_by_their_speed(model, world, tmp_path):
    """Each answer is given once, and all together are those of one process."""
    samples = read_samples(benchmark("nano"), str(world))
    evaluate(benchmark("nano"), model, str(world), tmp_path / "alone", [VARIANT])
    (tmp_path / "together" / "nano" / "shares").mkdir(parents=True)
    (tmp_path / "together" / "nano" / "shares" / "0").touch()  # of a run that was killed
    context, port = multiprocessing.get_context("fork"), str(free_port())
    found = context.Queue()
    arguments = (port, model, samples, tmp_path / "together", found)
    processes = [context.Process(target=take_part, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    results = sorted(found.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    ranks, sizes, answered, timeouts = zip(*results, strict=True)
    assert (ranks, sizes) == ((0, 1), (2, 2)) and min(timeouts) >= 3600
    assert sum(answered) == len(samples) and 0 < answered[0] < answered[1]
    folder = tmp_path / "together" / "nano" / "one_frame"
    rows = [row for file in folder.glob("predictions*.jsonl") for row in read_lines(file)]
    assert sorted(rows, key=by_id) == sorted(lines(tmp_path / "alone" / "nano" / "one_frame"), key=by_id)
    assert not (tmp_path / "together" / "nano" / "shares").exists()


def evaluate_slowly(model, world, out, found):
    slow_down(model, 0.2)
    found.put(evaluate(benchmark("nano"), model, str(world), out, [VARIANT], limit=2)[VARIANT.name]["coverage"])


def test_a_run_is_not_disturbed_by_another_into_the_same_folder(model, world, tmp_path, monkeypatch):
    """The other is refused, and may follow: else they would take each other's share of the work."""
    monkeypatch.setattr("pllava.files.LOCK_TIMEOUT", 0)
    out, variants = tmp_path / "out", [Variant("reversed", control="reversed")]
    (tmp_path / "link").symlink_to(out)
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    process = context.Process(target=evaluate_slowly, args=(model, world, out, found))
    process.start()
    while not list(out.rglob("predictions.jsonl")):
        time.sleep(0.01)
    with pytest.raises(ValueError, match=rf"process {process.pid} on .* is writing .*nano: wait for it, or"):
        evaluate(benchmark("nano"), model, str(world), tmp_path / "link", variants, limit=2)
    assert found.get(timeout=60) == 1
    process.join()
    assert evaluate(benchmark("nano"), model, str(world), out, variants, limit=2)["reversed"]["coverage"] == 1


def rescore_as(rank, port, out, found):
    become(rank, port)
    finished = CliRunner().invoke(app, ["eval", "--rescore", str(out)])
    found.put((rank, finished.exit_code, finished.stdout.count("coverage")))


def test_one_process_rescores(model, world, tmp_path):
    evaluate(benchmark("nano"), model, str(world), tmp_path, limit=1)
    context, port = multiprocessing.get_context("fork"), str(free_port())
    found = context.Queue()
    processes = [context.Process(target=rescore_as, args=(rank, port, tmp_path, found)) for rank in range(2)]
    for process in processes:
        process.start()
    assert sorted(found.get(timeout=60) for _ in processes) == [(0, 0, 1), (1, 0, 0)]
    for process in processes:
        process.join()


def take_all(folder, pieces, found):
    shares = Shares(folder)
    found.put([piece for piece in range(pieces) if shares.take(piece) and shares.take(piece)])


def test_a_piece_goes_to_one_process(tmp_path):
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    processes = [context.Process(target=take_all, args=(tmp_path, 300, found)) for _ in range(4)]
    for process in processes:
        process.start()
    taken = Counter(piece for _ in processes for piece in found.get(timeout=60))
    assert taken == Counter(range(300))
    for process in processes:
        process.join()
