"""A full disk: the error is one line that says what is kept."""

import errno
import sys

import pytest
import torch
from layouts import IMAGE_BASE
from safetensors import SafetensorError
from typer.testing import CliRunner

from pllava.nano.world.rendering import render
from pllava.train.__main__ import main
from pllava_cli import app

DISK_FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", DISK_FULL, ids=lambda error: type(error).__name__)
def test_a_conversion_leaves_no_files(tmp_path, monkeypatch, error):
    def save_file(weights, file, **options):
        file.write_bytes(b"a part")
        raise error

    monkeypatch.setattr("pllava.convert.writing.save_file", save_file)
    result = CliRunner().invoke(app, ["convert", str(IMAGE_BASE), str(tmp_path / "out")])
    assert result.exit_code == 1 and not list(tmp_path.iterdir())
    message = result.stderr.splitlines()[-1]  # after the progress bar
    assert message.startswith(f"Error: The disk is full: {tmp_path / 'out'} was not written"), result.stderr


def test_a_training_run_names_the_checkpoint_to_resume_from(tmp_path, monkeypatch):
    render(tmp_path / "world", 4, seed=4)
    monkeypatch.chdir(tmp_path)
    save = torch.save

    def save_until_full(value, file, *args, **kwargs):
        full = "checkpoint-2" in str(file)
        save(value, "/dev/full" if full else file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save_until_full)
    options = ["--model_name_or_path", "nano", "--datasets", "world/questions.jsonl", "--output_dir", "my-nano"]
    options += ["--save_steps", "1", "--max_steps", "3", "--per_device_train_batch_size", "1", "--use_cpu", "true"]
    monkeypatch.setattr(sys, "argv", ["train", *options, "--bf16", "false", "--report_to", "none"])
    with pytest.raises(SystemExit) as ended:
        main()
    message = str(ended.value)
    assert message.startswith("Error: No room on the disk for my-nano. my-nano/checkpoint-1 is complete")
    assert "\n" not in message and "--resume_from_checkpoint true" in message
