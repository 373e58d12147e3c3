"""The example scripts run, as a newcomer would run them."""

import csv
from pathlib import Path

import forked
import pytest

import pllava
from pllava.nano.world.rendering import read_questions, render

SCRIPT = Path(pllava.__file__).parent / "examples" / "finetune_on_captions.py"


@pytest.fixture
def folder(tmp_path):
    """Clips with a captions.csv."""
    render(tmp_path / "clips", 6, seed=3)
    captions = [row for row in read_questions(tmp_path / "clips") if row["type"] == "caption"]
    with (tmp_path / "clips" / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption"])
        writer.writerows([Path(row["video"]).relative_to(tmp_path / "clips"), row["answer"]] for row in captions)
    return tmp_path / "clips"


def test_captions_are_fine_tuned_on(folder, tmp_path):
    assert len(SCRIPT.read_text().splitlines()) <= 44
    result = forked.run(SCRIPT, folder, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("'loss'") == 6
    assert not [file for file in (tmp_path / "my-captioner").iterdir() if file.suffix == ".bin"]
    adapted = pllava.load_model(adapter=tmp_path / "my-captioner", check=True)
    assert adapted.active_peft_config.r == 128
