"""Training runs that are killed and resumed, and runs of several processes."""

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import forked
import psutil
import pytest
import torch
from ports import free_port
from safetensors.torch import load_file
from video_files import moving_frames, write_video

import pllava

SCRIPT = Path(__file__).parents[1] / "support" / "training_run.py"
ROWS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 questions about 6 clips."""
    folder = tmp_path_factory.mktemp("data")
    for clip in range(6):
        write_video(folder / f"{clip}.mp4", moving_frames(12 + clip, seed=clip), fps=10)
    rows = [
        {"video": f"{n % 6}.mp4", "question": f"What is {n}?", "answer": "red " * (n % 3 + 1)} for n in range(ROWS)
    ]
    del rows[5]["video"], rows[11]["video"]  # text only
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "train.jsonl"


@pytest.fixture
def run(data, checkpoint, tmp_path):
    """Return a function that runs the script with some options and returns its output directory."""

    def start(name, processes=1, dies=False, launcher=(), args=None, **options):
        output = tmp_path / name
        options = {"model": checkpoint, "datasets": [str(data)], **options}
        options["args"] = {
            "output_dir": str(output),
            "max_steps": 8,
            "per_device_train_batch_size": 4 // processes,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "seed": 5,
            **(args or {}),
        }
        file = tmp_path / "options.json"
        file.write_text(json.dumps(options))
        if launcher:
            environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, *launcher, str(SCRIPT), str(file)]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
            assert result.returncode == 0, result.stderr[-3000:]
            return output
        environments = forked.ranks(processes) if processes > 1 else [{"ACCELERATE_USE_CPU": "true"}]
        outputs = tmp_path / f"{name}-outputs"
        outputs.mkdir(exist_ok=True)
        for result in forked.run_group(environments, SCRIPT, file, folder=outputs):
            assert result.returncode == (-signal.SIGKILL if dies else 0), result.stderr[-3000:]
        return output

    return start


def steps(output, rank=0):
    """Return the log of each step; of a repeated step, the last one."""
    lines = (output / f"steps-{rank}.jsonl").read_text().splitlines()
    return {entry["step"]: entry for entry in map(json.loads, lines)}


def losses(output, rank=0):
    return {step: entry["loss"] for step, entry in steps(output, rank).items()}


def ids(output, ranks=1):
    """Return the ids in each global batch."""
    batches = defaultdict(set)
    for rank in range(ranks):
        for entry in map(json.loads, (output / f"steps-{rank}.jsonl").read_text().splitlines()):
            batches[entry["step"]] |= set(entry["ids"])
    return {step: sorted(names) for step, names in batches.items()}


def weights(output):
    return load_file(output / "adapter_model.safetensors")


def test_killed_and_resumed_run_equals_an_uninterrupted_one(run):
    """Bit for bit, with dropout, randomly sampled frames and different numbers of workers."""
    whole = run("whole", args={"dataloader_num_workers": 1})
    killed = random.Random().randrange(3, 8)
    run("again", dies=True, kill_in_step=killed, args={"dataloader_num_workers": 2})
    again = run("again", resume=True, args={"dataloader_num_workers": 0})
    assert steps(again) == steps(whole), f"killed in step {killed}"
    check_epoch(whole)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())
    logged = [json.loads((output / "log-0.json").read_text()) for output in (whole, again)]
    timed = {"data_wait", "tokens_per_second", "epoch", "train_runtime", "train_loss", "total_flos"}
    timed |= {"train_samples_per_second", "train_steps_per_second"}
    left = [[{key: entry[key] for key in entry if key not in timed} for entry in log] for log in logged]
    assert left[0] == left[1]


def test_no_worker_outlives_a_killed_run(run, tmp_path):
    """Not even one that is sending a text longer than the buffer of a pipe."""
    rows = [{"question": f"What is {n}?", "answer": "red " * 20_000} for n in range(ROWS)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = {"dataloader_num_workers": 2, "max_length": None}
    run("killed", dies=True, kill_in_step=0, datasets=[str(tmp_path / "long.jsonl")], args=args)
    workers = [
        process for process in psutil.process_iter() if holds(process, tmp_path / "killed-outputs" / "0.out.err")
    ]
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def holds(process, path):
    try:
        return str(path) in {file.path for file in process.open_files()}
    except psutil.Error:  # ended in between, or another user's
        return False


@pytest.mark.slow
def test_two_processes_train_like_one(run):
    """They have the same rows in each global batch, and the same losses."""
    one, two = run("one", dropout=0.0), run("two", processes=2, dropout=0.0)
    assert ids(one) == ids(two, ranks=2)
    check_epoch(two, ranks=2)
    check_as_one(one, two)


def check_epoch(output, ranks=1):
    """Check that each row comes once in an epoch."""
    done = Counter(name for step, names in ids(output, ranks).items() if step < ROWS // 4 for name in names)
    assert len(done) == ROWS and set(done.values()) == {1}


def check_as_one(one, two):
    logged = [
        [entry["loss"] for entry in json.loads((output / "log-0.json").read_text()) if "loss" in entry]
        for output in (one, two)
    ]
    torch.testing.assert_close(*map(torch.tensor, logged), rtol=1e-4, atol=1e-5)
    expected = weights(one)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_resume_after_being_killed(run):
    whole = run("whole", processes=2)
    run("again", processes=2, dies=True, kill_in_step=5)
    again = run("again", processes=2, resume=True)
    assert ids(again, ranks=2) == ids(whole, ranks=2)
    for rank in range(2):
        for step, loss in losses(again, rank).items():
            assert loss == pytest.approx(losses(whole, rank)[step], abs=1e-6)
    expected = weights(whole)
    for name, value in weights(again).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_run_resumes_with_another_number_of_processes_and_batch_size(run):
    """Each row comes once in an epoch, and the run has all its epochs."""
    epochs = {"max_steps": -1, "num_train_epochs": 2}
    output = run("run", processes=2, dies=True, kill_in_step=5, args=epochs)
    before = [name for rank in range(2) for step in range(4) for name in steps(output, rank)[step]["ids"]]
    (output / "steps-0.jsonl").unlink()
    run("run", resume=True, args={**epochs, "per_device_train_batch_size": 3})
    after = steps(output)
    assert sorted(after) == list(range(4, 4 + math.ceil((2 * ROWS - len(before)) / 3)))
    read = before + [name for step in sorted(after) for name in after[step]["ids"]]
    for epoch in (read[:ROWS], read[ROWS : 2 * ROWS]):
        assert len(set(epoch)) == ROWS


@pytest.mark.slow
def test_two_fsdp_processes_train_like_one(run):
    config = Path(pllava.__file__).parent / "train" / "accelerate" / "fsdp.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    launcher += ["--mixed_precision", "no", "--main_process_port", free_port()]
    one = run("one", dropout=0.0)
    # Batches of one row: in some steps, one of the processes has only text
    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    two = run("two", processes=2, launcher=launcher, dropout=0.0, args=args)
    assert (two / "distributed").read_text() == "FSDP"
    assert ids(one) == ids(two, ranks=2)
    check_as_one(one, two)
