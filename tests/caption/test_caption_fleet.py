"""Requests to several servers: which of them gets how many, and what becomes of a server that is down."""

import base64
import json
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import openai
import pytest
from chat_server import Reply, chat_server
from PIL import Image
from typer.testing import CliRunner
from video_files import decode_all, moving_frames, write_video

from pllava.eval import ChatServer, Endpoint, Sample
from pllava.eval.models import fleet, openai_client
from pllava.eval.models.openai_client import ITEMS_AHEAD, ServerError
from pllava_cli import app


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
    """Keep the client's retries, with a short backoff."""
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.02)


def chat(text):
    return [{"role": "user", "content": str(text)}]


def texts(server, count):
    """Ask `count` questions; return the replies' texts."""
    return [reply.text for _, reply in server.replies([chat(number) for number in range(count)])]


SERVER = """
import threading
from chat_server import Reply, chat_server
with chat_server(lambda _: Reply("of the process", delay=0.01)) as (url, _):
    print(url, flush=True)
    threading.Event().wait()
"""


@contextmanager
def server_process():
    """Yield the address of a server in a process, and the process."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env=_path()) as process:
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def _path():
    return {"PYTHONPATH": ":".join(sys.path)}


# --- back-pressure ---------------------------------------------------------------------------------------------------


def test_items_are_taken_as_the_servers_become_free():
    taken, most_ahead = 0, 0

    def chats():
        nonlocal taken
        for number in range(60):
            taken += 1
            yield chat(number)

    with chat_server(lambda _: Reply("yes", delay=0.002)) as (url, stub):
        for received, (_, reply) in enumerate(ChatServer("served", url, concurrency=3).replies(chats())):
            most_ahead = max(most_ahead, taken - received)
            assert reply.text == "yes"
    assert received == 59 and most_ahead == 3 + ITEMS_AHEAD and stub.most_under_way <= 3


def test_slow_server_gets_fewer_requests_than_a_fast_one():
    """The slow one replies after the fast one has answered all others: in turns, each would get a half."""
    others_done = threading.Event()

    def slow(_):
        others_done.wait(30)
        return Reply("slow")

    def fast(_):
        if len(fast_stub.requests) == 36:
            others_done.set()
        return Reply("fast")

    with chat_server(slow) as (slow_url, slow_stub), chat_server(fast) as (fast_url, fast_stub):
        replies = texts(ChatServer("served", f"{slow_url}, {fast_url}", concurrency=4), 40)
    assert len(replies) == 40 and replies.count("slow") <= 4
    assert slow_stub.most_under_way <= 4 and fast_stub.most_under_way <= 4


def test_replies_are_kept_when_another_request_ends_the_run():
    all_in_flight = threading.Barrier(3, timeout=30)

    def answer(request):
        all_in_flight.wait()
        if request["messages"][0]["content"] == "1":
            return Reply(status=401)
        return Reply("kept", delay=0.1)

    replies = []
    with chat_server(answer) as (url, _), pytest.raises(ServerError, match="refuses 'served'"):
        for _, reply in ChatServer("served", url, concurrency=3).replies([chat(number) for number in range(3)]):
            replies.append(reply.text)
    assert replies == ["kept", "kept"]


# --- servers that are down -------------------------------------------------------------------------------------------


def test_requests_of_a_killed_server_go_to_the_other():
    with server_process() as (url, process), chat_server(lambda _: Reply("of the other", delay=0.01)) as (other, _):
        replies = []
        for _, reply in ChatServer("served", f"{url},{other}", concurrency=4).replies(map(chat, range(80))):
            assert reply.text, reply.error
            replies.append(reply.text)
            if len(replies) == 20:
                process.send_signal(signal.SIGKILL)
    assert len(replies) == 80 and 1 <= replies.count("of the process") < 30


def test_server_that_fails_is_set_aside_and_comes_back(monkeypatch):
    failing = True
    monkeypatch.setattr(fleet, "SECONDS_ASIDE", 3600)

    def flaky(_):
        return Reply(status=503) if failing else Reply("flaky")

    with chat_server(flaky) as (url, stub), chat_server(lambda _: Reply("steady")) as (other, _):
        server = ChatServer("served", f"{url},{other}", concurrency=2)
        assert texts(server, 30) == ["steady"] * 30
        asked = len(stub.requests)
        assert texts(server, 30) == ["steady"] * 30 and len(stub.requests) == asked, "it is set aside"
        monkeypatch.setattr(fleet, "SECONDS_ASIDE", 0)
        assert texts(server, 10) == ["steady"] * 10 and len(stub.requests) > asked and stub.most_under_way <= 2
        failing = False
        assert {*texts(server, 30)} == {"steady", "flaky"}


def test_request_that_fails_everywhere_is_one_failure():
    """It does not count as the servers' fault: they get the other requests."""

    def answer(request):
        return Reply(status=500) if request["messages"][0]["content"] == "5" else Reply("good")

    with chat_server(answer) as (url, stub), chat_server(answer) as (other, other_stub):
        replies = dict(ChatServer("served", f"{url},{other}", concurrency=1).replies(map(chat, range(30))))
    assert [number for number, reply in replies.items() if reply.text is None] == [5]
    assert "500" in replies[5].error and len(stub.requests) > 12 and len(other_stub.requests) > 12


def test_run_ends_when_all_servers_are_down(monkeypatch):
    monkeypatch.setattr(openai_client, "MAX_CONSECUTIVE_FAILURES", 4)
    with server_process() as (url, process), server_process() as (other, other_process):
        server = ChatServer("served", f"{url},{other}", concurrency=2)
        assert texts(server, 4) == ["of the process"] * 4
        for each in (process, other_process):
            each.kill()
            each.wait()
        with pytest.raises(ServerError, match=r"failed \d times in a row.*run it again"):
            texts(server, 1000)


# --- clips -----------------------------------------------------------------------------------------------------------


def sent_bytes(part):
    return base64.b64decode(part["video_url"]["url"].split(",", 1)[1])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_bytes_of_a_whole_file_are_sent_as_they_are(tmp_path, suffix):
    codec = {"codec": "libvpx"} if suffix == ".webm" else {}
    content = write_video(tmp_path / f"clip{suffix}", moving_frames(8), fps=8, **codec).read_bytes()
    endpoint = Endpoint(ChatServer("served", "http://nowhere"))
    assert sent_bytes(endpoint.video_part(Sample("", "", content, ("What?",)), None)) == content


def test_bytes_of_other_formats_and_parts_are_encoded(clips, tmp_path):
    images = [Image.fromarray(frame) for frame in moving_frames(5)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=125)
    endpoint = Endpoint(ChatServer("served", "http://nowhere"))
    for content, bounds, count in [
        ((tmp_path / "a.gif").read_bytes(), {}, 5),
        (clips[2].read_bytes(), {"start": 1.0, "end": 2.0}, 32),
    ]:
        part = endpoint.video_part(Sample("", "", content, ("What?",), **bounds), None)
        (tmp_path / "sent.mp4").write_bytes(sent_bytes(part))
        assert len(decode_all(tmp_path / "sent.mp4")) == count
    with pytest.raises(ValueError, match="Cannot decode"):
        endpoint.video_part(Sample("", "", b"no video", ("What?",)), None)


def test_fleet_captions_all_clips_though_a_server_dies(clips, tmp_path):
    """60 parts of three clips, at two servers: one answers ten requests and is then down."""
    listed, alive = tmp_path / "parts.jsonl", threading.Semaphore(10)
    parts = [{"video": str(clips[n % 3]), "end": float(end)} for n, end in enumerate(np.linspace(0.5, 2, 60))]
    listed.write_text("".join(json.dumps(part) + "\n" for part in parts))

    def dying(_):
        return Reply("A bar moves.") if alive.acquire(blocking=False) else Reply(status=503)

    with chat_server(dying) as (url, stub), chat_server(lambda _: Reply("A bar moves.")) as (other, _):
        arguments = [listed, "--out", tmp_path / "out.jsonl", "--endpoint", f"{url},{other}", "--model", "served"]
        finished = CliRunner().invoke(app, ["caption", *map(str, arguments), "--concurrency", "2"])
    assert finished.exit_code == 0, finished.output
    assert "60 captioned, 0 done before, 0 failed" in finished.stdout and len(stub.requests) > 10
