"""`python -m pllava.train`: from a recipe to the Hub, and errors in the options."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import forked
import pytest
import torch
from hub_client import commits
from huggingface_hub import ModelCard
from local_hub import local_hub
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pllava.train
from pllava.nano.world.rendering import render
from pllava.train.__main__ import main

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
TRAIN = Path(pllava.train.__file__).parent
NAMED = ["--datasets", "world/questions.jsonl", "--model_name_or_path", "nano"]
LOAD = """
import pllava
model = pllava.load_model(adapter="me/my-nano", alpha=8)
assert model.active_peft_config.r == 16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    render(folder / "world", 6, seed=4)
    render(folder / "validation", 2, seed=5)
    return folder


def launch(folder, *options, **environment):
    command = [*LAUNCH, "-m", "pllava.train", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_recipe_trains_pushes_and_loads(folder):
    (folder / "hub").mkdir()
    with local_hub(folder / "hub") as address:
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_x"}
        recipe = (TRAIN / "recipes" / "nano.yaml").read_text().replace("tensorboard", "[tensorboard, trackio]", 1)
        (folder / "mine.yaml").write_text(
            recipe + "trackio_static_space_id: false\n"
        )  # or a push would create a Space
        online["TRACKIO_DIR"] = str(folder / "trackio")
        options = ["--config", "mine.yaml", "--max_steps", "4", "--logging_steps", "2"]
        options += ["--eval_steps", "2", "--save_steps", "2", "--num_predictions", "3"]
        options += ["--push_to_hub", "true", "--hub_model_id", "me/my-nano", "--base_model", "me/nano"]
        result = launch(folder, *options, **online)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "All examples could be read" in result.stdout
        repository = folder / "hub" / "me" / "my-nano"
        files = {file.name for file in repository.rglob("*")}
        assert {"adapter_model.safetensors", "adapter_config.json", "processing_pllava.py", "README.md"} <= files
        assert not {name for name in files if name.endswith((".bin", ".pt", ".pth"))}
        progress = ["Training in progress, step 2", "Training in progress, step 4"]
        assert commits(address) == [*progress, "End of training"]
        assert result.stdout.splitlines()[-1] == f"Pushed to {address}/me/my-nano"
        card = (repository / "README.md").read_text()
        assert "| world |" in card and "me/my-nano" in card and "| steps | 4 of 4," in card
        assert ModelCard.load(repository / "README.md").data.base_model == "me/nano"
        shutil.copytree(pllava.NANO, folder / "hub" / "me" / "nano")
        loaded = forked.run("-c", LOAD, **online)
        assert loaded.returncode == 0, loaded.stderr[-3000:]
    state = json.loads((folder / "my-nano" / "trainer_state.json").read_text())
    assert next(entry for entry in state["log_history"] if "loss" in entry)["loss/world"] < 1
    check_evaluations(state, folder / "my-nano")


def check_evaluations(state, output):
    """Check that the run logged evaluation losses and tables of answers, and that it saved the best checkpoint."""
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    accuracies = [entry["step"] for entry in state["log_history"] if "eval_predictions_accuracy" in entry]
    assert list(losses) == accuracies == [2, 4] and len({entry["epoch"] for entry in state["log_history"]}) > 1
    assert state["best_metric"] == min(losses.values())
    saved, best = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (output, output.parent / state["best_model_checkpoint"])
    )
    assert all(torch.equal(value, best[name]) for name, value in saved.items())
    (events,) = (output / "runs").iterdir()
    tables = EventAccumulator(str(events)).Reload().Tensors("predictions/text_summary")
    lines = [table.tensor_proto.string_val[0].decode().splitlines() for table in tables]
    assert [table.step for table in tables] == [2, 4] and {len(table) for table in lines} == {2 + 3}
    assert lines[0][0] == "| step | task | question | reference | prediction | correct |"
    database = sqlite3.connect(output.parent / "trackio" / "huggingface.db")
    logged = [json.loads(line) for (line,) in database.execute("select metrics from metrics")]
    tables = [entry["predictions"]["_value"] for entry in logged if "predictions" in entry]
    assert [[row["step"] for row in table] for table in tables] == [[2] * 3, [4] * 3]
    assert [entry["eval/loss"] for entry in logged if "eval/loss" in entry] == list(losses.values())


def test_dpo_from_the_command_line(folder):
    rows = [
        {"video": f"clips/0000{n}.mp4", "prompt": "Describe it.", "chosen": "A red circle.", "rejected": "Cats."}
        for n in range(4)
    ]
    (folder / "world" / "preferences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--model_name_or_path", "nano", "--datasets", "world/preferences.jsonl", "--output_dir", "dpo"]
    options += ["--max_steps", "2", "--per_device_train_batch_size", "2", "--bf16", "false", "--logging_steps", "1"]
    result = forked.run("-m", "pllava.train.dpo", *options, "--use_cpu", "true", cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (folder / "dpo" / "adapter_model.safetensors").exists()
    assert "rewards/margins" in (folder / "dpo" / "trainer_state.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name the training data"),
        (["--datasets", "world/questions.jsonl"], "name the model to start from"),
        (["--datasets", "nowhere/at/all.jsonl", "--model_name_or_path", "nano"], "there is no such file"),
        (["--config", "nothere.yaml"], "nothere.yaml: there is no such file"),
        ([*NAMED, "--packing", "true"], "packing=True is not possible here: the collator makes the batches"),
        ([*NAMED, "--eval_datasets", "validation/questions.jsonl"], "--eval_strategy steps belong together"),
        ([*NAMED, "--early_stopping_patience", "2"], "also set --load_best_model_at_end"),
        ([*NAMED, "--prediction_benchmark", "nano"], "--prediction_benchmark needs --prediction_data"),
        ([*NAMED, "--output_dir", "finished"], "resume that run (--resume_from_checkpoint true), remove them"),
        ([*NAMED, "--output_dir", "finished", "--resume_from_checkpoint", "other/checkpoint-40"], "resume that run"),
    ],
)
def test_wrong_options_are_named(folder, options, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "finished" / "checkpoint-40").mkdir(parents=True, exist_ok=True)
    argv = ["pllava.train", "--output_dir", "none", "--bf16", "false", "--use_cpu", "true", *options]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_ddp_timeout_is_hours_by_default(folder, monkeypatch):
    """The process group is made with this timeout."""
    monkeypatch.chdir(folder)
    seen = []
    monkeypatch.setattr("pllava.train.__main__.check_options", lambda args: seen.append(args) or sys.exit())
    for options in ([], ["--ddp_timeout", "60"]):
        argv = ["pllava.train", "--output_dir", "none", "--bf16", "false", "--use_cpu", "true", *NAMED, *options]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit):
            main()
    assert seen[0].ddp_timeout_delta >= timedelta(hours=2) and seen[1].ddp_timeout == 60
