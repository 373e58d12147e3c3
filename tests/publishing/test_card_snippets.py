"""Every snippet of every kind of card runs, with nano in the place of a large model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_client import online, run
from huggingface_hub import ModelCard
from layouts import write_official
from local_hub import local_hub
from transformers import AutoProcessor

import pllava
from pllava.nano.world.rendering import render

pytestmark = pytest.mark.slow

SNIPPET = re.compile(r"^```(python|bash|yaml)\n(.*?)^```", re.DOTALL | re.MULTILINE)
TRAIN = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--bf16", "false", "--use_cpu", "true"]
TRAIN += ["--report_to", "none", "--output_dir", "trained"]
# The repositories, by the kind of their card
CARDS = {
    "model": "me/nano",
    "adapter": "me/tuned",
    "merged model": "me/merged",
    "processor": "me/processor",
    "model with its adapter": "me/converted",
    "training data": "datasets/me/clips",
    "captions": "datasets/me/captions",
    "captions with clips": "datasets/me/captions-with-clips",
    "results": "datasets/me/nano-results",
    "space": "spaces/me/nano",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "hub").mkdir()
    render(folder / "world", 4, seed=3)
    return folder


@pytest.fixture(scope="module")
def hub(folder):
    with local_hub(folder / "hub") as hub:
        run(hub, folder, "pllava", "eval", "nano", "--data", "world", "--out", "results")
        run(hub, folder, "pllava", "push", "nano", "me/nano", "--results", "results", "--space")
        run(hub, folder, "pllava", "train", "--datasets", "world/questions.jsonl", "--model", "me/nano", *TRAIN)
        run(hub, folder, "pllava", "push", "trained", "me/tuned")
        run(hub, folder, "pllava", "data", "push", "world/questions.jsonl", "me/clips")
        caption = ["pllava", "caption", "world/clips", "--out", "captions.jsonl", "--push"]
        run(hub, folder, *caption, "me/captions")
        run(hub, folder, *caption, "me/captions-with-clips", "--push-clips")
        run(hub, folder, "pllava", "convert", "me/nano", "merged", "--adapter", "me/tuned")
        run(hub, folder, "pllava", "push", "merged", "me/merged")
        write_official(folder / "official", shards=1)
        run(hub, folder, "pllava", "convert", "official", "converted", "--keep-adapter")
        run(hub, folder, "pllava", "push", "converted", "me/converted")
        AutoProcessor.from_pretrained(pllava.NANO).save_pretrained(folder / "processor")
        run(hub, folder, "pllava", "push", "processor", "me/processor")
        yield hub


@pytest.mark.parametrize("kind", CARDS)
def test_snippets_run(kind, hub, folder, tmp_path):
    card = ModelCard.load(hub.folder / CARDS[kind] / "README.md", ignore_metadata_errors=True)
    snippets = SNIPPET.findall(card.text)
    assert snippets or kind == "space"
    (tmp_path / "clip.mp4").symlink_to(next((folder / "world" / "clips").iterdir()))
    (tmp_path / "folder" / "of" / "the").mkdir(parents=True)
    (tmp_path / "folder" / "of" / "the" / "clips").symlink_to(folder / "world" / "clips")
    for language, code in snippets:
        if language == "yaml":
            (tmp_path / "recipe.yaml").write_text(code)
            run(hub, tmp_path, "pllava", "train", "--config", "recipe.yaml", "--model", "me/nano", *TRAIN)
            continue
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **online(hub, tmp_path / "home"), "PATH": path}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, f"{code}\n{result.stderr[-3000:]}"
