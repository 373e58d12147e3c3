"""The chat's server without a browser: its API, and what its addresses do not give away."""

import shutil
import sys
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import httpx
import pytest
from demo_server import run_server
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from ports import free_port

from pllava.demo.conversation import Settings, Turn
from pllava.demo.page import MAX_WAITING
from pllava.demo.page.uploads_only import REFUSAL

pytestmark = pytest.mark.slow
QUESTION = "Describe the video."
SETTINGS = [None, None, None, 0, 256, None, None]  # the defaults of the API's other parameters


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`pllava demo`, and its folder."""
    folder, port = tmp_path_factory.mktemp("demo"), free_port()
    command = [sys.executable, "-c", "import pllava_cli; pllava_cli.app()", "demo", "--port", port]
    command += ["--folder", str(folder)]
    with run_server(command, port, folder / "log", GRADIO_ANALYTICS_ENABLED="False") as address:
        yield address, folder


@pytest.fixture(scope="module")
def client(server):
    return Client(server[0], verbose=False)


def test_api_has_one_endpoint_which_streams_the_models_answer(client, engine, clip):
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/chat"]
    job = client.submit(question=QUESTION, files=[handle_file(clip.path)], api_name="/chat")
    *_, expected = engine.answer(engine.prepare([Turn(QUESTION, (clip,))], Settings()))
    assert job.result() == expected.text == job.outputs()[-1]
    short = client.predict(QUESTION, [handle_file(clip.path)], max_new_tokens=2, api_name="/chat")
    assert expected.text.startswith(short) and short != expected.text


def test_api_says_in_a_sentence_what_is_wrong(client, tmp_path, clip):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(AppError, match="^Cannot decode text.mp4: it is neither a video nor an image"):
        client.predict(QUESTION, [handle_file(str(tmp_path / "text.mp4"))], api_name="/chat")
    with pytest.raises(AppError, match="^There is no video or image yet"):
        client.predict(QUESTION, [], api_name="/chat")
    with pytest.raises(AppError, match="^The sub-clip starts|at or past the video's end"):
        client.predict(QUESTION, [handle_file(clip.path)], start=100, api_name="/chat")


def post(address, file):
    """Call the API as no client does, with files that were not uploaded; return the events that it answers."""
    reply = httpx.post(f"{address}/gradio_api/call/chat", json={"data": [QUESTION, [file], *SETTINGS]})
    if reply.status_code != 200:
        return reply.text
    return httpx.get(f"{address}/gradio_api/call/chat/{reply.json()['event_id']}", timeout=60).text


@pytest.mark.parametrize("form", ["{}", "/gradio_api/file={}", "file://{}", "http://127.0.0.1:1/{}", "../..{}"])
@pytest.mark.parametrize("meta", [None, {}, {"meta": {"_type": "gradio.FileData"}}])
def test_api_reads_no_file_that_was_not_uploaded(server, clip, tmp_path, form, meta):
    private = tmp_path / "private.mp4"
    shutil.copyfile(clip.path, private)
    path = form.format(private)
    events = post(server[0], path if meta is None else {"path": path, **meta})
    assert "event: complete" not in events and ("event: error" in events or events == REFUSAL)
    shutil.copyfile(clip.path, server[1] / "uploads" / "public.mp4")
    assert "event: complete" in post(server[0], str(server[1] / "uploads" / "public.mp4"))


def test_gradio_fetches_no_addresses(server):
    file = {"path": "https://example.org/a.mp4", "meta": {"_type": "gradio.FileData"}}
    assert post(server[0], file) == REFUSAL
    join = {"data": [{"text": "", "files": [file]}], "fn_index": 0, "session_hash": "a"}
    reply = httpx.post(f"{server[0]}/gradio_api/queue/join", json=join)
    assert (reply.status_code, reply.text) == (403, REFUSAL)
    for path in (
        "file=https://example.org/a.mp4",
        "file=HTTPS://example.org/a.mp4",
        "proxy=https://example.org/a.mp4",
    ):
        reply = httpx.get(f"{server[0]}/gradio_api/{path}")
        assert (reply.status_code, reply.text) == (403, REFUSAL)


def test_full_queue_is_a_sentence(server, clip):
    """More questions at once than may wait: those that are too many are refused, the others answered."""
    shutil.copyfile(clip.path, server[1] / "uploads" / "public.mp4")
    path = str(server[1] / "uploads" / "public.mp4")
    replies = [
        httpx.post(f"{server[0]}/gradio_api/call/chat", json={"data": [QUESTION, [path], *SETTINGS]})
        for _ in range(MAX_WAITING + 10)
    ]
    refused = [reply for reply in replies if reply.status_code != 200]
    assert refused and all("Queue is full" in reply.text for reply in refused)
    for reply in replies:
        if reply.status_code == 200:
            events = httpx.get(f"{server[0]}/gradio_api/call/chat/{reply.json()['event_id']}", timeout=120).text
            assert "event: complete" in events


def test_addresses_of_files_lead_to_uploads_only(server, client, tmp_path):
    address, folder = server
    (folder / "shared").mkdir(exist_ok=True)
    secret = folder / "shared" / "secret.txt"
    secret.write_text("secret")
    uploads = folder / "uploads"
    (uploads / "link.txt").symlink_to(secret)
    example = next(uploads.rglob("*.png"))
    with urlopen(f"{address}/gradio_api/file={example}") as response:
        assert response.status == 200
    for path in (
        secret,
        "/etc/passwd",
        f"{uploads}/../shared/secret.txt",
        f"{uploads}/%2e%2e/shared/secret.txt",
        f"{uploads}/..%2fshared/secret.txt",
        f"{uploads}/link.txt",
        "//etc/passwd",
        f"file://{secret}",
        "http://127.0.0.1:1/",
        uploads,
        quote(f"{uploads}/../log"),
    ):
        with pytest.raises(HTTPError) as caught:
            urlopen(f"{address}/gradio_api/file={path}")
        assert caught.value.code in (403, 404), path
