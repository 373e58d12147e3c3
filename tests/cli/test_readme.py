"""Every snippet of the README and of docs/ runs as printed, and prints the output shown below it."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import httpx
import pytest
from benchmark_folders import write_all
from chat_server import Reply, chat_server, grade
from layouts import write_official
from llava_models import write_llava
from local_hub import local_hub
from model_server import model_server
from original_llava import write_original
from ports import free_port

pytestmark = pytest.mark.slow  # minutes; CI runs it by `make test-readme`
ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"```(python|bash)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
# Each page with its snippets: the language, the code, and the output if it is shown
PAGES = {
    str(page.relative_to(ROOT)): snippets
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if (snippets := FENCE.findall(page.read_text(encoding="utf-8")))
}
# Commands that run until Ctrl-C
SERVERS = re.compile(r"^pllava (?:demo|gallery|serve)\b(?![^#\n]*--export)[^#\n]*", re.MULTILINE)
SERVED = ("README.md", "docs/serving.md")  # pages whose http://localhost:8000/v1 is a real `pllava serve nano`


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """
    A folder for each page, with demo.mp4, the benchmarks' files, and an original LLaVA without its vision tower.
    Snippets find what earlier ones wrote there.
    """
    shared = tmp_path_factory.mktemp("shared")
    demo = subprocess.run(
        [sys.executable, "-m", "pllava.nano", "demo"], cwd=shared, capture_output=True, text=True, timeout=240
    )
    assert demo.returncode == 0, demo.stderr
    right, asked = map(int, re.search(r"(\d+) of (\d+) answers are exactly right", demo.stdout).groups())
    assert right == asked, demo.stdout
    write_all(shared / "DATAS")
    write_original(shared, "llava", has_tower=False)
    (shared / "source").rename(shared / "my-llava")
    (shared / "tower").rename(shared / "clip-vit-large-patch14-336")
    directories = {page: tmp_path_factory.mktemp(Path(page).stem) for page in PAGES}
    for directory in directories.values():
        for name in ("demo.mp4", "DATAS", "my-llava", "clip-vit-large-patch14-336"):
            (directory / name).symlink_to(shared / name)
    return directories


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The address of a local Hub, which has tiny models in place of the published ones."""
    folder = tmp_path_factory.mktemp("hub")
    write_official(folder / "ermu2001" / "pllava-7b", shards=2)
    write_llava(folder / "llava-hf" / "llava-onevision-qwen2-0.5b-ov-hf", "onevision")
    with local_hub(folder) as address:
        yield address


@pytest.fixture(scope="module")
def server():
    """The address of a server that stands in for OpenAI's and for a user's own; it grades requests with a schema."""

    def answer(request):
        if "response_format" not in request:
            return Reply("(A)")
        return grade(request)

    with chat_server(answer) as (url, _):
        yield url


@pytest.fixture(scope="module")
def nano_server(tmp_path_factory):
    """The address of `pllava serve nano`."""
    with model_server(tmp_path_factory.mktemp("serve")) as running:
        yield f"{running.address}/v1"


# A page is one test: its snippets follow from each other, and two processes share the pages
@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, directories, hub, server, request, subtests):
    for language, code, output in PAGES[page]:
        with subtests.test(code.partition("\n")[0]):
            run_snippet(page, language, code, output, directories[page], hub, server, request)


def run_snippet(page, language, code, output, folder, hub, server, request):
    if "make " in code:
        for target in re.findall(r"make ([\w-]+)", code):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    code = re.sub(r"^pip install .*\n", "", code, flags=re.MULTILINE)  # the tests' environment has it all
    servers, code = SERVERS.findall(code), SERVERS.sub("", code)
    served = request.getfixturevalue("nano_server") if page in SERVED else server
    code = code.replace("--clips 200", "--clips 8").replace("http://localhost:8000/v1", served)
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        "PATH": path,
        "HF_ENDPOINT": hub,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_x",
    }
    environment |= {"HF_HOME": str(folder / "home"), "ACCELERATE_USE_CPU": "true"}
    environment |= {"OPENAI_BASE_URL": server, "OPENAI_API_KEY": "none"}
    result = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(output.strip()), result.stdout
    for line in servers:
        start_and_stop(line, folder, {**os.environ, **environment})


def start_and_stop(line, folder, environment):
    """Run a server until the address that it prints answers; then Ctrl-C ends it."""
    port = free_port()
    command = [*shlex.split(line), "--port", port]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=PIPE, stderr=STDOUT, text=True) as process:
        try:
            printed = ""
            while f":{port}" not in printed:
                assert (written := process.stdout.readline()), printed
                printed += written
            assert httpx.get(f"http://127.0.0.1:{port}/{'health' if 'serve' in line else ''}").status_code == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, printed
        finally:
            process.kill()
