"""The benchmark of a model of real size: its checkpoint has the official layout, and its page the figures of a run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layouts import SIZES, VISION_L, official_shapes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


official_layout, real_size = load("official_layout"), load("real_size")


def test_checkpoint_has_the_official_layout():
    *dimensions, _ = SIZES["7b"]
    config = official_layout.official_config("7b", None)
    tensors = official_layout.official_tensors(config)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == official_shapes(*dimensions)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert config["vision_config"].items() <= VISION_L.items()


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory and bytes from /proc")
@pytest.mark.slow
def test_tiny_model_is_converted_loaded_and_asked(tmp_path):
    command = [sys.executable, BENCHMARKS / "real_size.py", "measure", "--size", "tiny", "--layers", "1"]
    run = subprocess.run([*command, "--work", tmp_path / "work"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    for row in ("pllava convert", "pllava chat", "load the weights", "prefill", "decode", "matrix product"):
        assert f"| {row} |" in run.stdout
    assert not list(tmp_path.iterdir())


def test_docs_are_up_to_date():
    result = json.loads(real_size.RESULT.read_text(encoding="utf-8"))
    assert real_size.DOC.read_text(encoding="utf-8") == real_size.markdown(result)
