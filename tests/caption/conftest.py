"""What the tests of captioning share: the command, and clips of nano's world."""

from collections.abc import Callable
from pathlib import Path

import pytest
from model_inputs import TOKENS
from typer.testing import CliRunner, Result

from pllava.nano.world.rendering import render
from pllava_cli import app


@pytest.fixture
def caption(checkpoint: str, tmp_path: Path) -> Callable[..., Result]:
    """Captions into `out.jsonl`, in this process. Of an option that is given twice, the last counts."""

    def run_caption(*arguments: object) -> Result:
        options = ["caption", "--out", tmp_path / "out.jsonl", "--model", checkpoint, "--max-new-tokens", TOKENS]
        return CliRunner().invoke(app, [*map(str, options), *map(str, arguments)], prog_name="pllava")

    return run_caption


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 24 clips."""
    folder = tmp_path_factory.mktemp("world")
    render(folder, clips=24, seed=3)
    return folder / "clips"
