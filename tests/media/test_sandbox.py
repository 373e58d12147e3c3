"""Functions in a process with limits: what comes back, what is killed, what remains."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import limited_functions as functions
import pytest

from pllava.media import MediaLimits, MediaRefused
from pllava.media.sandbox import ProcessEnded, _fork_server, run_limited, start_fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads processes from /proc")
LIMITS = MediaLimits(decode_seconds=20, decode_memory=1 << 28)
SHORT = MediaLimits(decode_seconds=0.5, decode_memory=1 << 28)


@pytest.fixture(autouse=True)
def nothing_remains():
    yield
    assert len(functions.waiting_processes()) == 1


def test_results_and_files_come_back(tmp_path):
    results = [run_limited(functions.add, number, 2, limits=LIMITS) for number in range(3)]
    assert [(result["sum"], bytes(content)) for result, content in results] == [(2, b""), (3, b"\0"), (4, b"\0\1")]
    processes = {result["process"] for result, _ in results}
    assert len(processes) == 3 and os.getpid() not in processes  # each a fresh one
    (tmp_path / "file").write_bytes(b"content")
    with open(tmp_path / "file", "rb") as file:
        os.remove(tmp_path / "file")
        assert run_limited(functions.read, limits=LIMITS, file=file)[1] == b"content"
    assert len(run_limited(functions.large, 50_000_000, limits=LIMITS)[1]) == 50_000_000


def test_threads_share_the_server():
    with ThreadPoolExecutor(8) as pool:
        sums = pool.map(lambda number: run_limited(functions.add, number, 1, limits=LIMITS)[0]["sum"], range(40))
        assert list(sums) == list(range(1, 41))


def test_refusals_and_mistakes_are_told_apart():
    with pytest.raises(MediaRefused, match="^too long$"):
        run_limited(functions.refuse, "too long", limits=LIMITS)
    with pytest.raises(RuntimeError, match="(?s)In a decoding process:.*a mistake in the code"):
        run_limited(functions.fail, limits=LIMITS)
    with pytest.raises(RuntimeError, match="(?s)In a decoding process:.*No module named"):
        run_limited(Unknown(), limits=LIMITS)


@pytest.mark.parametrize("name", ["hang", "hang_in_c", "compute_forever", "stop"])
def test_what_takes_too_long_is_killed(name):
    began = time.monotonic()
    with pytest.raises(ProcessEnded, match="takes longer than 0.5 s"):
        run_limited(getattr(functions, name), limits=SHORT)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["take_memory", "take_memory_in_c"])
def test_memory_is_limited(name):
    before = functions.memory()
    with pytest.raises(ProcessEnded, match="takes more than 268,435,456 bytes of memory"):
        run_limited(getattr(functions, name), limits=LIMITS)
    assert functions.memory() - before < 50


@pytest.mark.parametrize("name", ["crash", "leave"])
def test_crash_is_a_refusal(name):
    with pytest.raises(ProcessEnded, match="its decoder crashed"):
        run_limited(getattr(functions, name), limits=LIMITS)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"not JSON\n",
        b"[]\n",
        b"{}\n",
        b'{"status": "done"}\n',
        b'{"status": "done", "value": {}, "length": 1e9}\n',
        b'{"status": "done", "value": {}, "length": -1}\n',
        b'{"status": "done", "value": {}, "length": 999999999999}\n',
        b'{"status": "done", "value": {}, "length": 9}\n',
        b'{"status": "own", "value": {}, "length": 0}\n',
        b'{"status": "done", "value": {}, "length": "9"}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_answer_in_another_form_is_a_crash(line):
    with pytest.raises(ProcessEnded, match="its decoder crashed"):
        run_limited(functions.answer_nonsense, line, limits=LIMITS)


def test_the_process_cannot_write_files_or_keep_many_open(tmp_path):
    with pytest.raises(RuntimeError, match="File too large"):
        run_limited(functions.write_file, str(tmp_path / "file"), limits=LIMITS)
    assert not (tmp_path / "file").read_bytes()
    assert run_limited(functions.open_files, limits=LIMITS)[0]["files"] < 64


def test_neither_the_main_module_nor_its_secrets_are_in_the_process(tmp_path):
    """`multiprocessing` runs a script without a guard again in each process: it would start the program there."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('running')\n"
        "import json, limited_functions as functions\nfrom pllava.media import MediaLimits\n"
        "from pllava.media.sandbox import run_limited\n"
        "print(json.dumps(run_limited(functions.environment, limits=MediaLimits())[0]))\n"
    )
    environment = {**os.environ, "HF_TOKEN": "secret", "OPENAI_API_KEY": "secret", "PYTHONPATH": ":".join(sys.path)}
    printed = subprocess.run([sys.executable, script], env=environment, check=True, capture_output=True, text=True)
    running, seen = printed.stdout.splitlines()
    seen = json.loads(seen)
    assert running == "running" and seen["main"].endswith("forking.py")
    assert "PATH" in seen["environment"] and "secret" not in seen["environment"].values()


class Unknown:
    def __reduce__(self) -> tuple:
        return __import__, ("of_the_caller_alone",)

    def __call__(self) -> None: ...


def call(connection) -> None:
    connection.send(run_limited(functions.add, 1, 2, limits=LIMITS)[0]["sum"])


def test_daemonic_and_forked_processes_share_the_server():
    """The workers that decode ahead are such processes."""
    ours, theirs = get_context("fork").Pipe()
    worker = get_context("fork").Process(target=call, args=(theirs,), daemon=True)
    worker.start()
    assert ours.poll(20) and ours.recv() == 3
    worker.join()


def leave_properly(connection) -> None:
    connection.send(run_limited(functions.add, 1, 2, limits=LIMITS)[0]["sum"])
    _fork_server.stop()  # as at the exit of a process that was forked without `multiprocessing`


def test_forked_process_does_not_end_the_server_of_its_parent():
    run_limited(functions.add, 1, 2, limits=LIMITS)
    server = _fork_server._process
    ours, theirs = get_context("fork").Pipe()
    worker = get_context("fork").Process(target=leave_properly, args=(theirs,))
    worker.start()
    assert ours.poll(20) and ours.recv() == 3
    worker.join()
    assert _fork_server._process is server and server.poll() is None


def hang_and_tell(connection) -> None:
    connection.send(None)
    run_limited(functions.hang, limits=LIMITS)


def test_the_process_ends_with_its_caller():
    ours, theirs = get_context("fork").Pipe()
    worker = get_context("fork").Process(target=hang_and_tell, args=(theirs,))
    worker.start()
    ours.recv()
    assert len(functions.waiting_processes(2)) == 2  # one that waits, and one that hangs
    worker.kill()
    worker.join()
    assert len(functions.waiting_processes()) == 1


def test_server_that_was_killed_is_started_again():
    run_limited(functions.add, 1, 2, limits=LIMITS)
    server = _fork_server._process
    for process in (server.pid, *functions.waiting_processes()):
        os.kill(process, signal.SIGKILL)
    assert run_limited(functions.add, 1, 2, limits=LIMITS)[0]["sum"] == 3
    new = _fork_server._process
    assert new.pid != server.pid
    start_fork_server()
    assert _fork_server._process is new
