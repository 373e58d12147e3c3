"""The server in operation: keys, limits, logs, metrics, clients that leave, and its end."""

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import openai
import pytest
from model_server import COMMAND, ModelServer, World, data_uri, model_server, text_part, user, video_part
from video_files import moving_frames, write_video

import pllava
from pllava.serving.server import MAX_DECODERS
from pllava_cli import app

KEY = "secret-of-this-test"
# The process that decodes media is apart, and its libraries may warn: W1127 09:01:35.282000 ...
LINE = re.compile(r"W\d{4} .*|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \S+ .*")
QUESTION = [user(text_part("What happens?"))]
HOURS = 100_000  # tokens, which no test waits for


@pytest.fixture(scope="module")
def endless(
    model: pllava.PllavaForConditionalGeneration,
    processor: pllava.PllavaProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A checkpoint whose answers end only at their limit, which may be far away."""
    directory = tmp_path_factory.mktemp("endless")
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    config = pllava.PllavaConfig.from_pretrained(directory)
    config.text_config.max_position_embeddings = 2 * HOURS
    config.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def busy(endless: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server with a key that takes three requests at a time."""
    options = ["--served-model-name", "endless", "--max-requests", "3", "--no-check"]
    with model_server(tmp_path_factory.mktemp("busy"), endless, *options, PLLAVA_API_KEY=KEY) as server:
        yield server


def stream(server: ModelServer, max_tokens: int = HOURS) -> openai.Stream:
    return server.client(KEY).chat.completions.create(
        model="endless", messages=QUESTION, stream=True, max_tokens=max_tokens, temperature=0
    )


def test_the_key_is_asked_for(busy: ModelServer) -> None:
    for key in ("wrong", KEY + "x", KEY[:-1], "ключ", f"Bearer {KEY}"):
        for reply in (
            busy.get("/v1/models", headers={"Authorization": f"Bearer {key}".encode()}),
            busy.post({}, headers={"Authorization": f"Bearer {key}".encode()}),
        ):
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
    assert busy.post({}).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        busy.client("wrong").models.list()
    assert [model.id for model in busy.client(KEY).models.list()] == ["endless"]
    assert busy.get("/health").json() == {"status": "ok"}
    assert KEY not in busy.log


def test_a_body_is_counted_as_it_arrives(busy: ModelServer) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    reply = _send(busy, headers | {"Transfer-Encoding": "chunked"}, [b"100000\r\n" + b" " * 2**20 + b"\r\n"] * 200)
    assert reply.startswith(b"HTTP/1.1 413") and b"134,217,728 bytes" in reply
    reply = _send(busy, headers | {"Content-Length": str(10**15)}, [b"{}"])
    assert reply.startswith(b"HTTP/1.1 413")
    assert busy.get("/health").status_code == 200


def _send(server: ModelServer, headers: dict[str, str], pieces: list[bytes]) -> bytes:
    """Send a request as it is written, and return the beginning of the reply."""
    host, port = server.address.removeprefix("http://").split(":")
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        with suppress(OSError):  # the server may close its side before it has everything
            for piece in ["\r\n".join(lines).encode() + b"\r\n\r\n", *pieces]:
                connection.sendall(piece)
        return connection.recv(4096)


def test_too_many_requests_are_refused_and_clients_that_leave_make_room(busy: ModelServer) -> None:
    streams = [stream(busy)]
    next(iter(streams[0]))
    waiting = [threading.Thread(target=_leave_after, args=(busy, 6)) for _ in range(2)]
    for each in waiting:
        each.start()
    busy.wait_for_metric("pllava_num_requests_waiting", 2)
    assert busy.metric("pllava_num_requests_running") == 1
    with pytest.raises(openai.InternalServerError) as refused:
        stream(busy)
    assert refused.value.status_code == 503 and refused.value.response.headers["Retry-After"] == "1"
    assert "3 requests" in refused.value.message
    assert busy.get("/health").status_code == 200
    for each in waiting:
        each.join()
    busy.wait_for_metric("pllava_num_requests_waiting", 0)  # those that waited have left
    assert busy.metric("pllava_num_requests_running") == 1
    streams[0].close()
    busy.wait_for_metric("pllava_num_requests_running", 0, seconds=5)
    tokens = busy.metric("pllava_generation_tokens_total")
    time.sleep(0.3)
    assert busy.metric("pllava_generation_tokens_total") == tokens > 0
    assert list(stream(busy, max_tokens=3))[-1].choices[0].finish_reason == "length"


def _leave_after(server: ModelServer, seconds: float) -> None:
    """Ask for a whole answer, and close the connection before it comes."""
    with pytest.raises(openai.APITimeoutError):
        server.client(KEY).with_options(timeout=seconds).chat.completions.create(
            model="endless", messages=QUESTION, max_tokens=HOURS
        )


def test_a_whole_answer_that_runs_is_cancelled_too(busy: ModelServer) -> None:
    _leave_after(busy, 0.7)
    busy.wait_for_metric("pllava_num_requests_running", 0, seconds=5)


def test_each_line_of_the_log_has_the_request_id(busy: ModelServer) -> None:
    client = busy.client(KEY)
    for wanted, taken in [("trace-1.a_B", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("a\tb", False)]:
        reply = client.chat.completions.with_raw_response.create(
            model="endless", messages=QUESTION, max_tokens=2, extra_headers={"X-Request-Id": wanted}
        )
        given = reply.headers["X-Request-Id"]
        assert (given == wanted) == taken
        assert reply.parse().id == given
        _wait_for_line(busy, f" {given} POST /v1/chat/completions 200")
    evil = "/%0A2026-01-01 00:00:00,000 INFO forged GET /health 200\r\n\x1b[31m\u2028"
    busy.get("/" + "".join(f"%{byte:02X}" for byte in evil.encode()))
    _wait_for_line(busy, "forged")
    bad = [line for line in re.split(r"[\r\n\u2028]", busy.log) if line and not LINE.fullmatch(line)]
    assert not bad, bad
    assert not [line for line in re.split(r"[\r\n\u2028]", busy.log) if line and not LINE.fullmatch(line)]
    assert not [line for line in busy.log.splitlines() if line.startswith("2026-01-01")]
    assert "\x1b" not in busy.log and "\\x1b" in busy.log


def _wait_for_line(server: ModelServer, words: str) -> None:
    """Wait for a line of the log: it is written after the reply."""
    end = time.monotonic() + 10
    while words not in server.log:
        assert time.monotonic() < end, server.log
        time.sleep(0.02)


def test_metrics(nano_server: ModelServer, world: World) -> None:
    names = ["prompt_tokens_total", "generation_tokens_total", "time_to_first_token_seconds_count"]
    names += ["media_decode_seconds_count", 'requests_total{path="/v1/chat/completions",status="200"}']
    names += ['requests_total{path="/v1/chat/completions",status="400"}', 'requests_total{path="other",status="404"}']
    before = [nano_server.metric(f"pllava_{name}") for name in names]
    message = user(video_part(data_uri(world.clips[0])), text_part("What moves?"))
    usage = nano_server.client().chat.completions.create(model="nano", messages=[message]).usage
    nano_server.post({"model": "nano"})
    nano_server.get("/elsewhere")
    after = [nano_server.metric(f"pllava_{name}") for name in names]
    differences = [new - old for new, old in zip(after, before, strict=True)]
    assert differences == [usage.prompt_tokens, usage.completion_tokens, 1, 1, 1, 1, 1]


def test_reading_media_does_not_block_the_server(nano_server: ModelServer, world: World, web: str) -> None:
    """While three requests wait for a web server that does not reply, a fourth one and others are answered."""
    client = nano_server.client().chat.completions
    url, answers = f"http://{web}/clips/{world.clips[0].name}", []

    def ask(address: str) -> None:
        reply = client.create(model="nano", messages=[user(video_part(address), text_part("What moves?"))])
        answers.append(reply.choices[0].message.content)

    web.opened.clear()
    try:
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(MAX_DECODERS - 1)]
        for thread in threads:
            thread.start()
        nano_server.wait_for_metric("pllava_num_requests_waiting", len(threads))
        assert nano_server.get("/health").status_code == 200
        ask(data_uri(world.clips[0]))
        assert len(answers) == 1
    finally:
        web.opened.set()
    for thread in threads:
        thread.join()
    assert len(answers) == MAX_DECODERS and len(set(answers)) == 1


def test_each_damaged_video_is_logged(nano_server: ModelServer, world: World) -> None:
    path = write_video(world.folder / "cut.avi", moving_frames(40), codec="mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for number in (1, 2):
        name = f"damaged-{number}"
        body = {"model": "nano", "messages": [user(video_part(str(path)))], "max_tokens": 2}
        assert nano_server.post(body, headers={"X-Request-Id": name}).status_code == 200
        _wait_for_line(nano_server, f"{name} POST")
        assert re.search(rf"WARNING {name} .*cut.avi is damaged or ends early", nano_server.log)


def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, words in [
            (["nano", "--port", str(taken.getsockname()[1])], "Cannot listen on 127.0.0.1"),
            (["nano", "--host", "203.0.113.7"], "Cannot listen on 203.0.113.7"),
            (["nano", "--model", "nano"], "--model"),
            (["nano", "--api-key", ""], "empty"),
            (["nano", "--alpha", "4"], "--adapter"),
        ]:
            with pytest.raises(SystemExit) as ended:
                app(["serve", *arguments])
            error = capsys.readouterr().err
            assert ended.value.code in (1, 2) and error.startswith("Error: ") and words in error, error


def test_a_server_without_a_key_is_for_its_own_machine(
    nano_server: ModelServer, busy: ModelServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for host, status in [("evil.example", 403), ("[::1", 403), ("localhost:8000", 200), ("[::1]:80", 200)]:
        assert nano_server.get("/v1/models", headers={"Host": host}).status_code == status
        assert nano_server.post({}, headers={"Host": host}).status_code == {403: 403, 200: 400}[status]
        assert nano_server.get("/health", headers={"Host": host}).status_code == 200
    headers = {"Host": "gpu.example", "Authorization": f"Bearer {KEY}"}
    assert busy.get("/v1/models", headers=headers).status_code == 200
    monkeypatch.setattr("pllava.serving.server.serve", lambda *args: None)
    for arguments, warned in [(["0.0.0.0"], True), (["127.0.0.1"], False), (["0.0.0.0", "--api-key", KEY], False)]:
        app(["serve", "nano", "--no-check", "--port", "0", "--host", *arguments], standalone_mode=False)
        assert ("everyone who reaches 0.0.0.0" in capsys.readouterr().err) == warned


def test_the_address_is_printed_once_it_answers() -> None:
    with subprocess.Popen([*COMMAND, "nano", "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        try:
            printed = (re.search(r"is served at http://127\.0\.0\.1:(\d+)/", line) for line in process.stderr)
            port = next(int(match[1]) for match in printed if match)
            socket.create_connection(("127.0.0.1", port)).close()
        finally:
            process.kill()


def test_running_answers_end_after_a_signal(busy: ModelServer) -> None:
    """The last test with this server."""
    whole: list[str | None] = []

    def ask() -> None:
        reply = busy.client(KEY).chat.completions.create(model="endless", messages=QUESTION, max_tokens=200)
        whole.append(reply.choices[0].finish_reason)

    streamed = stream(busy, max_tokens=400)
    first = next(streamed)
    thread = threading.Thread(target=ask)
    thread.start()
    busy.wait_for_metric("pllava_num_requests_waiting", 1)
    busy.process.send_signal(signal.SIGTERM)
    _wait_for_line(busy, "shutting down: requests in progress, which end first: 2")
    with pytest.raises(openai.APIConnectionError):
        busy.client().models.list()
    chunks = [first, *streamed]
    thread.join()
    assert chunks[-1].usage.completion_tokens == 400 and whole == ["length"]
    assert busy.process.wait(timeout=20) == 0
    assert "shut down" in busy.log


@pytest.mark.slow
def test_a_second_signal_ends_the_server_at_once(endless: str, tmp_path: Path) -> None:
    with model_server(tmp_path, endless, "--served-model-name", "endless", "--no-check") as server:
        answer = stream(server)
        next(iter(answer))
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == -signal.SIGTERM and time.monotonic() - began < 2
