"""Every snippet of the README runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_folders import write_all
from chat_server import Reply, chat_server, grade
from layouts import write_official
from local_hub import local_hub

pytestmark = pytest.mark.slow  # five minutes; CI runs it by `make test-readme`
ROOT = Path(__file__).resolve().parents[2]
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
    write_all(directory / "DATAS")
    return directory


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Its address; it has a tiny model in the place of the official one."""
    folder = tmp_path_factory.mktemp("hub")
    write_official(folder / "ermu2001" / "pllava-7b", shards=2)
    with local_hub(folder) as address:
        yield address


@pytest.fixture(scope="module")
def server():
    """The address of what stands in for OpenAI's server and for one's own: it grades where it is asked to."""

    def answer(request):
        if "response_format" not in request:
            return Reply("(A)")
        return grade(request)

    with chat_server(answer) as (url, _):
        yield url


@pytest.mark.parametrize(("language", "code"), SNIPPETS, ids=lambda value: value.strip().splitlines()[0][:40])
def test_snippet(language, code, directory, hub, server):
    if language == "bash" and "make " in code:
        for target in re.findall(r"make ([\w-]+)", code):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    code = code.replace("--clips 1000", "--clips 4 --model ./nano")  # the figures of the shipped card stay as they are
    code = code.replace("--clips 200", "--clips 8").replace("http://localhost:8000/v1", server)
    if "./nano" in code:
        subprocess.run(["cp", "-r", str(ROOT / "nano" / "checkpoint"), str(directory / "nano")], check=True)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(directory / "home")}
    environment |= {"OPENAI_BASE_URL": server, "OPENAI_API_KEY": "none", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(
        command, cwd=directory, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr
