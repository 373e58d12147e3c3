"""The command line, with the tiny random model."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

import forked
import pytest
from hub_client import online
from local_hub import local_hub
from model_inputs import TOKENS
from peft import get_peft_model
from transformers import AutoProcessor
from trl import DPOConfig, SFTConfig
from typer.testing import CliRunner

import pllava
from pllava.eval import Checkpoint
from pllava.files import read_lines
from pllava.model_pooling import choose_pooling, set_pooling
from pllava.nano.world.rendering import render
from pllava_cli import app

PLLAVA = str(Path(sys.executable).with_name("pllava"))
SHORT = ("--max-new-tokens", TOKENS)


def run(*arguments, **options):
    """Runs the command in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="pllava", **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    render(folder, clips=1, seed=3)
    return folder


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(pllava.load_model(checkpoint), pllava.lora_config(r=2)).save_pretrained(folder)
    return folder


def message(role, text, video=None):
    media = [{"type": "video", "path": str(video)}] if video else []
    return {"role": role, "content": [*media, {"type": "text", "text": text}]}


# --- the program -----------------------------------------------------------------------------------------------------

COMMANDS = ["chat", "caption", "convert", "data", "train", "eval"]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_the_commands(arguments):
    result = run(*arguments)
    assert result.exit_code == 0 and not result.stderr
    assert all(re.search(rf"^\W+{command} ", result.stdout, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    "command", ["chat", "caption", "convert", "data", "data inspect", "data push", "eval", "reproduce"]
)
def test_command_has_help(command):
    long, short = run(*command.split(), "--help"), run(*command.split(), "-h")
    assert long.exit_code == 0 and long.stdout == short.stdout and f"pllava {command}" in long.stdout


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["--version"], f"{version('pllava')}\n"),
        (["--help"], "Usage: pllava"),
        (["--show-completion", "bash"], "_PLLAVA_COMPLETE"),
    ],
)
def test_program_starts_without_torch(arguments, output):
    """Python lists its imports on standard error."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", PLLAVA, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert output in result.stdout, result
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "typer" in imported and not imported & {"torch", "transformers", "pllava"}


@pytest.mark.parametrize(
    "arguments",
    ["chat {clip} What? --adapter {adapter} --no-check", "caption {clip} --out a.jsonl", "eval --data {world}"],
)
def test_program_prints_nothing_but_its_output_and_bars(adapter, clips, world, tmp_path, arguments):
    """No warnings of libraries at its start, and no progress bars for loading a small model."""
    arguments = arguments.format(adapter=adapter, clip=clips[0], world=world).split()
    result = subprocess.run([PLLAVA, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout
    assert [line for line in re.split("[\r\n]", result.stderr) if line and not re.match("Captioning|nano", line)] == []


def test_module_prints_no_warnings(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "pllava.nano", "demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_slow_loading_shows_progress_on_standard_error(monkeypatch, checkpoint, clips):
    command = ["chat", clips[0], "What?", "--model", checkpoint, *SHORT]
    result = run(*command)
    assert result.exit_code == 0 and "Loading" not in result.output
    monkeypatch.setattr("pllava.checkpoint_files.BAR_DELAY", 0)
    result = run(*command)
    assert "Loading weights: 100%" in result.stderr and "Loading" not in result.stdout


# --- train -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)  # `pllava train` sets it for the training's own parser


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_train_shows_the_options_of_training(argv, option):
    result = run("train", option)
    assert result.exit_code == 0
    assert "usage: pllava train" in result.stdout and "--feature_cache_size" in result.stdout
    assert "--beta" not in result.stdout and "--beta" in run("train", "--dpo", option).stdout


def test_train_passes_all_options_on(argv, monkeypatch):
    calls = []
    monkeypatch.setattr("pllava.train.__main__.main", lambda config_class: calls.append((config_class, sys.argv[1:])))
    options = ["--config", "nano.yaml", "--max_steps", "-1", "--learning_rate=1e-4", "--datasets", "a", "b", "-x"]
    assert run("train", *options).exit_code == 0 and run("train", "--max_steps", 3, "--dpo").exit_code == 0
    assert calls == [(SFTConfig, options), (DPOConfig, ["--max_steps", "3"])]


def test_train_shows_a_wrong_option_in_one_line_and_a_failure_with_its_traceback(argv, monkeypatch, tmp_path):
    result = run("train", "--output_dir", tmp_path, "--max_steps", "many")
    assert result.exit_code == 2
    assert result.stderr == "Error: argument --max_steps/--max-steps: invalid int value: 'many'\n"

    def fail(config_class):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("pllava.train.__main__.main", fail)
    result = run("train")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "in fail\n" in result.stderr and "CUDA error" in result.stderr


# --- chat ------------------------------------------------------------------------------------------------------------


def test_chat_answers_one_question(answer, checkpoint, clips):
    result = run("chat", clips[0], "What happens?", "--model", checkpoint, *SHORT)
    assert result.exit_code == 0, result.stderr
    expected = answer([message("user", "What happens?", clips[0])])
    assert result.stdout.strip() == expected.strip()


def test_chat_holds_a_conversation(answer, checkpoint, clips):
    options = ["--model", checkpoint, "--num-frames", 4, "--dtype", "float32", "--device", "cpu", *SHORT]
    result = run("chat", clips[1], *options, input="What happens?\nAnd then?\n\nNot asked\n")
    assert result.exit_code == 0, result.stderr
    messages = [message("user", "What happens?", clips[1])]
    first = answer(messages)
    messages += [message("assistant", first), message("user", "And then?")]
    greeting, *answers = result.stdout.split("> ")
    assert "empty line" in greeting
    assert [text.strip() for text in answers] == [first.strip(), answer(messages).strip(), ""]


def test_chat_samples_num_frames(answer, processor, checkpoint, clips):
    result = run("chat", clips[2], "What happens?", "--model", checkpoint, "--num-frames", 9, *SHORT)
    assert result.exit_code == 0, result.stderr
    messages = [message("user", "What happens?", clips[2])]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"num_frames": 9}
    )
    assert inputs["pixel_values_videos"].shape[1] == 9
    expected = answer(messages, num_frames=9)
    assert result.stdout.strip() == expected.strip()


def test_chat_sees_the_part_from_start_to_end(answer, checkpoint, clips):
    part = {"start": 0.3, "end": 0.9}
    result = run("chat", clips[0], "What happens?", "--model", checkpoint, "--start", 0.3, "--end", 0.9, *SHORT)
    assert result.exit_code == 0, result.stderr
    (chat,) = [message("user", "What happens?", clips[0])]
    whole = answer([chat])
    chat["content"][0].update(part)
    assert result.stdout.strip() == answer([chat]).strip() != whole.strip()


@pytest.mark.parametrize(
    ("pooling", "num_frames", "named"),
    [
        ("average-2x3x6", None, "average-2x3x6"),
        ("slowfast", None, "slowfast-1x3x6+4x1x1"),
        ("merge", 8, "merge-4x3x3"),
    ],
)
def test_chat_gives_the_clip_another_pooling(answer, checkpoint, clips, pooling, num_frames, named):
    frames = [] if num_frames is None else ["--num-frames", num_frames]
    result = run("chat", clips[0], "What happens?", "--model", checkpoint, "--pooling", pooling, *frames, *SHORT)
    assert result.exit_code == 0, result.stderr
    model, processor = pllava.load_model(checkpoint, check=False), AutoProcessor.from_pretrained(checkpoint)
    chosen = choose_pooling(model.config, pooling, num_frames)
    assert str(chosen) == named
    set_pooling(model, processor, chosen)
    messages = [message("user", "What happens?", clips[0])]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["pixel_values_videos"].shape[1] == (num_frames or 4)
    ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(ids, skip_special_tokens=True).strip()
    assert result.stdout.strip() == expected != answer(messages).strip()


@pytest.mark.parametrize("command", ["chat", "caption", "eval", "serve", "demo"])
@pytest.mark.parametrize(
    ("pooling", "reason"),
    [
        ("maximum", "'maximum' is not a pooling; there are average, slowfast, merge"),
        ("", "'' is not a pooling"),
        ("merge-4x3", "three positive integers"),
        ("slowfast-4x3x3", "three positive integers for each of 2 paths"),
        ("average-4x7x3", "The pooling average-4x7x3 does not fit: it may have 1 to 4 frames"),
    ],
)
def test_a_pooling_that_the_model_cannot_have_is_refused_before_weights_are_read(
    checkpoint, clips, world, tmp_path, monkeypatch, command, pooling, reason
):
    monkeypatch.setattr(pllava, "load_model", lambda *_, **__: pytest.fail("weights are read"))
    arguments = {
        "chat": [clips[0], "What?", "--model", checkpoint],
        "caption": [clips[0], "--model", checkpoint, "--out", tmp_path / "out.jsonl"],
        "eval": [checkpoint, "--data", world, "--out", tmp_path],
        "serve": [checkpoint, "--port", 0],
        "demo": [checkpoint, "--folder", tmp_path],
    }[command]
    result = run(command, *arguments, "--pooling", pooling)
    assert result.exit_code == 1 and result.stderr.startswith("Error: ") and reason in result.stderr, result.output


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["chat"], 2, "Missing argument 'VIDEO'."),
        (["chat", "{clip}", "What?", "--modle", "nano"], 2, "No such option: --modle (Possible options: --model)"),
        (["chat", "{clip}", "What?", "--dtype", "float31"], 2, "--dtype float31 is not a dtype of torch; try float32"),
        (["chat", "{clip}", "What?", "--device", "cpu", "--device-map", "auto"], 2, "Choose one of --device and"),
        (["chat", "{clip}", "What?", "--num-frames", "0"], 2, "Invalid value for '--num-frames'"),
        (["chat", "missing.mp4", "What?"], 1, "Cannot decode missing.mp4: there is no such file"),
        (["chat", "{clip}", "What?", "--model", "no/such/dir"], 1, "no/such/dir"),
        (["chat", "{clip}", "What?", "--start", "9"], 1, "{clip}"),
        (["chat", "{clip}", "What?", "--model", "{adapter}"], 1, "'{adapter}' is an adapter, not a model: pass it"),
        (
            ["caption", "{clip}", "--out", "a.jsonl", "--model", "{adapter}"],
            1,
            "'{adapter}' is an adapter, not a model",
        ),
        (["eval", "{adapter}", "--data", "{world}"], 1, "'{adapter}' is an adapter, not a model: pass it"),
        (["eval", "one", "--model", "other"], 2, "MODEL and --model are the same option; got one and other"),
        (
            ["caption", "{clip}", "--out", "a.txt"],
            2,
            "--out a.txt: captions are written to a file that ends in .jsonl, .parquet, .csv",
        ),
        (["convert", "nano", "out"], 1, f"{pllava.NANO} is a PLLaVA checkpoint"),
        (["data", "inspect", "no.jsonl"], 1, "no.jsonl"),
        (["transcribe"], 2, "No such command 'transcribe'."),
    ],
)
def test_error_is_one_line(adapter, clips, world, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    names = {"clip": clips[0], "adapter": adapter, "world": world}
    result = run(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == code, result.output
    *_, line = lines = result.stderr.splitlines()
    assert len(lines) == 1 and line.startswith("Error: ") and message.format(**names) in line, result.stderr
    assert not list(tmp_path.iterdir())


def test_model_of_a_hub_repository_that_has_an_adapter_is_refused(adapter, clips, tmp_path):
    shutil.copytree(adapter, tmp_path / "hub" / "me" / "adapter")
    with local_hub(tmp_path / "hub") as address:
        result = forked.run(
            "pllava", "chat", clips[0], "What?", "--model", "me/adapter", **online(address, tmp_path / "home")
        )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: 'me/adapter' is an adapter, not a model: pass it as the adapter (--adapter)"
    )


def test_revision_of_a_model_on_the_hub_is_recorded_as_its_commit(checkpoint, clips, world, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "hub" / "me" / "pllava")
    with local_hub(tmp_path / "hub") as address:
        commit = json.load(urlopen(f"{address}/api/models/me/pllava"))["sha"]
        model, options = ["--model", "me/pllava"], {"cwd": tmp_path, **online(address, tmp_path / "home")}
        named = forked.run("pllava", "caption", clips[0], "--out", "a.jsonl", *model, "--revision", commit, **options)
        evaluated = forked.run("pllava", "eval", *model, "--revision", commit, "--data", world, **options)
        unknown = forked.run("pllava", "chat", clips[0], "What?", *model, "--revision", "v9", **options)
    assert (named.returncode, evaluated.returncode) == (0, 0), (named.stderr, evaluated.stderr)
    (row,) = read_lines(tmp_path / "a.jsonl")
    run_file = json.loads((tmp_path / "results" / "nano" / "run.json").read_text())
    assert row["revision"] == run_file["revision"] == commit
    assert unknown.returncode == 1 and "v9 is not a valid git identifier" in unknown.stderr.splitlines()[-1]


def test_checkpoint_has_the_quantisation(tmp_path):
    """The same from the configs as from the model that is loaded; of one that was saved quantised, too."""
    for bits, named in ((4, "nf4"), (8, "llm_int8")):
        quantized = {"quantization_config": pllava.quantization_config(bits)}
        announced = Checkpoint.read(pllava.NANO, **quantized)
        model = pllava.load_model(pllava.NANO, dtype="auto", device_map="cpu", **quantized)
        assert Checkpoint.of(model.config, "float32") == announced and announced.quantization == named
        model.save_pretrained(tmp_path / named)
        assert Checkpoint.read(str(tmp_path / named)).quantization == named
    assert Checkpoint.read(pllava.NANO).quantization is None
