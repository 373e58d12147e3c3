"""`pllava caption --endpoint`: the requests that servers get, and the file that a later run continues."""

import base64
import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import pytest
from caption_lines import read
from chat_server import Reply, chat_server
from typer.testing import CliRunner

import pllava
from pllava.eval.models.endpoint import ENCODED_FPS
from pllava_cli import app


@pytest.fixture
def caption(tmp_path):
    """Captions into out.jsonl, in this process, by the model `served` at an address."""

    def run_caption(url, *arguments):
        options = ["caption", "--out", tmp_path / "out.jsonl", "--endpoint", url, "--model", "served", *arguments]
        return CliRunner().invoke(app, list(map(str, options)), prog_name="pllava")

    return run_caption


@pytest.fixture
def rows(tmp_path):
    return lambda: read(tmp_path / "out.jsonl")


def sent_video(request):
    """Return the bytes of the video that a request holds."""
    (message,) = request["messages"]
    video, text = message["content"]
    assert text["text"] == "Describe the video."
    head, content = video["video_url"]["url"].split(",", 1)
    assert head == "data:video/mp4;base64"
    return base64.b64decode(content)


def test_files_are_sent_as_they_are_and_servers_take_turns(caption, clips, rows):
    by_content = {clip.read_bytes(): clip for clip in clips}

    def answer(request):
        return Reply(f" of {by_content[sent_video(request)].name} ")

    with chat_server(answer) as (url, stub), chat_server(answer) as (other, other_stub):
        finished = caption(f"{url},{other}", clips[0].parent, "--max-new-tokens", 9)
        assert finished.exit_code == 0 and "3 captioned, 0 done before, 0 failed" in finished.stdout
        again = caption(other, clips[0].parent, "--max-new-tokens", 9)  # another address, but the same model
        assert "0 captioned, 3 done before, 0 failed" in again.stdout
    requests = stub.requests + other_stub.requests
    assert {len(stub.requests), len(other_stub.requests)} == {1, 2}
    assert {(each["model"], each["temperature"], each["max_tokens"]) for each in requests} == {("served", 0, 9)}
    found = {row["video"]: row for row in rows()}
    assert set(found) == set(map(str, clips))
    for clip in clips:
        row = found[str(clip)]
        assert row["caption"] == f"of {clip.name}" and row["path"] == str(clip) and len(row["sha256"]) == 64
        assert (row["model"], row["served"], row["prompt"]) == ("served", True, "Describe the video.")


def test_failures_are_recorded_counted_and_tried_again(caption, clips, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.002)
    failing = {clips[1].read_bytes()}

    def answer(request):
        return Reply(status=500) if sent_video(request) in failing else Reply("A bar moves.")

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    with chat_server(answer) as (url, _):
        first = caption(url, *clips, broken)
        assert first.exit_code == 1 and "2 captioned, 0 done before, 2 failed" in first.stdout
        errors = {row["video"]: row["error"] for row in rows() if "error" in row}
        assert "500" in errors[str(clips[1])] and "broken.mp4" in errors[str(broken)]
        failing.clear()
        second = caption(url, *clips)
        assert second.exit_code == 0 and "1 captioned, 2 done before, 0 failed" in second.stdout
    assert sum("caption" in row for row in rows()) == 3


def test_part_of_a_video_is_sent_as_a_clip(caption, clips, rows):
    lengths = []

    def answer(request):
        with av.open(io.BytesIO(sent_video(request))) as container:
            lengths.append((sum(1 for _ in container.decode(video=0)), container.streams.video[0].average_rate))
        return Reply("A bar.")

    with chat_server(answer) as (url, _):
        assert caption(url, clips[2], "--end", 2.5).exit_code == 0
        changed = caption(url, clips[2], "--start", 2)
    assert lengths == [(32, ENCODED_FPS)] * 2
    first, second = rows()
    assert first["end"] == 2.5 and "start" not in first
    assert changed.exit_code == 0 and second["start"] == 2 and "end" not in second


def test_address_is_fetched_through_the_gate_and_sent_as_a_clip(caption, clips, rows):
    handler = partial(SimpleHTTPRequestHandler, directory=clips[0].parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site, chat_server(lambda _: Reply("A bar.")) as (url, stub):
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        host = f"127.0.0.1:{site.server_port}"
        refused = caption(url, f"http://{host}/0.mp4")
        assert refused.exit_code == 1 and not stub.requests
        (failed,) = rows()
        finished = caption(url, f"http://{host}/0.mp4", "--allowed-media-domains", host)
        site.shutdown()
    assert finished.exit_code == 0, finished.stderr
    (row,) = rows()
    assert "127.0.0.1" in failed["error"] and row["caption"] == "A bar." and row["sha256"] is None
    with av.open(io.BytesIO(sent_video(stub.requests[0]))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20  # all: it has fewer than would be taken


def test_file_takes_captions_of_a_server_or_of_this_process(caption, clips, checkpoint, tmp_path):
    options = ["caption", clips[0], "--out", tmp_path / "local.jsonl", "--model", checkpoint, "--max-new-tokens", 2]
    assert CliRunner().invoke(app, list(map(str, options))).exit_code == 0
    served = ["--out", tmp_path / "local.jsonl", "--model", checkpoint, "--max-new-tokens", 2]
    with chat_server(lambda _: Reply("A bar.")) as (url, stub):
        refused = caption(url, clips[0], *served)
        assert refused.exit_code == 1 and "'served'" in refused.stderr and not stub.requests
        assert caption(url, clips[0], "--max-new-tokens", 2).exit_code == 0
    back = [*options[:3], tmp_path / "out.jsonl", *options[4:]]
    refused = CliRunner().invoke(app, list(map(str, back)))
    assert refused.exit_code == 1 and "made with" in refused.stderr


def test_server_that_is_down_ends_the_run(caption, clips, tmp_path):
    with chat_server(lambda _: Reply(status=401)) as (url, _):
        finished = caption(url, *clips)
    assert finished.exit_code == 1 and "refuses 'served'" in finished.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--endpoint http://nowhere/v1", "Name the model of http://nowhere/v1: --model"),
        (
            "--endpoint http://nowhere/v1 --model served --adapter a --num-frames 8",
            "leave --adapter, --num-frames out",
        ),
        (
            "--endpoint http://nowhere/v1 --model served --dtype float16 --batch-size 2",
            "leave --dtype, --batch-size out",
        ),
        (f"--model {pllava.NANO} --concurrency 2", "There is no --endpoint: leave --concurrency out"),
    ],
)
def test_options_without_effect_are_refused(clips, tmp_path, options, message):
    arguments = ["caption", str(clips[0]), "--out", str(tmp_path / "out.jsonl"), *options.split()]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2 and message in refused.stderr, refused.stderr
