"""`accelerate launch -m pllava.train`: a recipe from the command line to the Hub."""

import json
import os
import subprocess
import sys

import pytest
import trl
from local_hub import local_hub

from pllava.nano.data import render
from pllava.train.__main__ import main

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
LOAD = """
import pllava
model = pllava.load_model(adapter="me/my-nano", alpha=8)
assert model.active_peft_config.r == 16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    render(folder / "world", 6, seed=4)
    return folder


def launch(folder, *options, module="pllava.train", **environment):
    command = [*LAUNCH, "-m", module, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_recipe_is_trained_pushed_and_loaded(folder):
    (folder / "hub").mkdir()
    with local_hub(folder / "hub") as address:
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_x"}
        options = ["--config", "train/recipes/nano.yaml", "--max_steps", "4", "--logging_steps", "2"]
        options += ["--push_to_hub", "true", "--hub_model_id", "me/my-nano"]
        result = launch(folder, *options, **online)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "All examples could be read" in result.stdout
        repository = folder / "hub" / "me" / "my-nano"
        files = {file.name for file in repository.rglob("*")}
        assert {"adapter_model.safetensors", "adapter_config.json", "processing_pllava.py", "README.md"} <= files
        assert not {name for name in files if name.endswith((".bin", ".pt", ".pth"))}
        card = (repository / "README.md").read_text()
        assert "| world |" in card and "me/my-nano" in card and "| steps | 4 of 4 |" in card
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD], env={**os.environ, **online}, capture_output=True, text=True, timeout=300
        )
        assert loaded.returncode == 0, loaded.stderr[-3000:]
    state = json.loads((folder / "my-nano" / "trainer_state.json").read_text())
    # TRL gives the tokens' losses, and with them the sources', from 1.16 on
    logged = "loss/world" if hasattr(trl.trainer.utils, "add_fused_lm_head") else "loss"
    assert state["log_history"][0][logged] < 1


def test_preferences_from_the_command_line(folder):
    rows = [
        {"video": f"clips/0000{n}.mp4", "prompt": "Describe it.", "chosen": "A red circle.", "rejected": "Cats."}
        for n in range(4)
    ]
    (folder / "world" / "preferences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--model_name_or_path", "nano", "--datasets", "world/preferences.jsonl", "--output_dir", "dpo"]
    options += ["--max_steps", "2", "--per_device_train_batch_size", "2", "--bf16", "false", "--logging_steps", "1"]
    result = launch(folder, *options, module="pllava.train.dpo")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (folder / "dpo" / "adapter_model.safetensors").exists()
    assert "rewards/margins" in (folder / "dpo" / "trainer_state.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name what to train on"),
        (["--datasets", "world/questions.jsonl"], "name the model to start from"),
        (["--datasets", "nowhere/at/all.jsonl", "--model_name_or_path", "nano"], "there is no such file"),
    ],
)
def test_what_is_missing_is_said(folder, options, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    argv = ["pllava.train", "--output_dir", "none", "--bf16", "false", "--use_cpu", "true", *options]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err
