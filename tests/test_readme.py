"""Every snippet of the README runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SNIPPETS = re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("readme")
    demo = subprocess.run(
        [sys.executable, "-m", "pllava.nano", "demo"], cwd=directory, capture_output=True, text=True, timeout=240
    )
    assert demo.returncode == 0, demo.stderr
    assert (directory / "demo.mp4").exists()
    right, asked = map(int, re.search(r"(\d+) of (\d+) answers are exactly right", demo.stdout).groups())
    assert right == asked, demo.stdout
    return directory


@pytest.mark.parametrize(("language", "code"), SNIPPETS, ids=lambda value: value.strip().splitlines()[0][:40])
def test_snippet(language, code, directory):
    if language == "bash" and "make " in code:
        for target in re.findall(r"make ([\w-]+)", code):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    code = code.replace("--clips 1000", "--clips 4 --model ./nano")  # the figures of the shipped card stay as they are
    if "./nano" in code:
        subprocess.run(["cp", "-r", str(ROOT / "nano" / "checkpoint"), str(directory / "nano")], check=True)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, cwd=directory, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr
