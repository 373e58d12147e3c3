"""The gallery on this computer: a real server process, parts of files, and nothing but the gallery's files."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import av
import pytest
from ports import free_port

from pllava.gallery.data import VARIABLE
from pllava.gallery.local_server import GalleryServer


def ask(server, path, method="GET", **headers):
    """Send a request without any clean-up of its path; return status, headers and content."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def server(evaluated, site, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        with GalleryServer([evaluated.nano, evaluated.published], site=site) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield server
            server.shutdown()


@pytest.fixture(scope="module")
def benchmarks(server):
    status, headers, content = ask(server, "/data/gallery.js")
    assert status == 200 and headers["Content-Type"].startswith("text/javascript")
    script = content.decode().removeprefix(VARIABLE).removesuffix(";\n")
    return {benchmark["name"]: benchmark for benchmark in json.loads(script)["benchmarks"]}


def test_page_strips_and_clips_are_served(server, benchmarks, evaluated, site):
    assert ask(server, "/")[2] == ask(server, "/index.html?sample=3")[2] == (site / "index.html").read_bytes()
    assert ask(server, "/icon.svg")[1]["Content-Type"] == "image/svg+xml"
    (clip, *_) = benchmarks["nano"]["clips"]
    status, headers, content = ask(server, f"/{clip['strip']['file']}")
    assert (status, headers["Content-Type"], content[8:12]) == (200, "image/webp", b"WEBP")
    status, headers, content = ask(server, f"/{clip['video']}")
    assert content == (evaluated.data / "world" / "clips" / clip["name"]).read_bytes()
    assert (headers["Content-Type"], headers["Accept-Ranges"]) == ("video/mp4", "bytes")
    status, headers, content = ask(server, f"/{clip['video']}", "HEAD")
    assert status == 200 and content == b"" and int(headers["Content-Length"]) > 1000


def test_parts_of_a_clip_are_sent(server, benchmarks):
    path = f"/{benchmarks['nano']['clips'][0]['video']}"
    whole = ask(server, path)[2]
    size = len(whole)
    for asked, first, last in [
        ("0-9", 0, 9),
        ("100-", 100, size - 1),
        ("-5", size - 5, size - 1),
        (f"-{size * 2}", 0, size - 1),
        (f"7-{size * 2}", 7, size - 1),
    ]:
        status, headers, content = ask(server, path, Range=f"bytes={asked}")
        assert (status, content) == (206, whole[first : last + 1]), asked
        assert headers["Content-Range"] == f"bytes {first}-{last}/{size}"
    for asked in (f"{size}-", f"{size}-{size + 5}", "-0", "9-3"):
        status, headers, _ = ask(server, path, Range=f"bytes={asked}")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{size}"), asked
    for asked in ("0-1,4-5", "-", "x", "1-2-3"):  # none that is understood
        status, _, content = ask(server, path, Range=f"bytes={asked}")
        assert (status, content) == (200, whole), asked


def test_other_formats_and_parts_play(server, benchmarks, tmp_path):
    """An AVI is encoded when it is asked for; of a webm that plays as it is, the browser shows the part."""
    video = benchmarks["msvd_qa"]["clips"][0]["video"]
    assert not (server.cache / video).exists() and server.cache.is_relative_to(tmp_path.parents[0])
    (tmp_path / "clip.mp4").write_bytes(ask(server, f"/{video}")[2])
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert (server.cache / video).exists()
    parts = [clip for clip in benchmarks["mvbench"]["clips"] if clip["start"] is not None and clip["strip"]]
    shown = [clip for clip in parts if clip["name"].endswith(".webm")]
    assert shown and all(clip["video"].endswith(".webm#t=0.5,3.2") and clip["video_start"] == 0 for clip in shown)
    (folder,) = [clip for clip in parts if clip not in shown]
    assert folder["video"].endswith(".mp4") and folder["video_start"] == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/frames/../../../../../../etc/passwd",
        "/frames/..%2f..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "/clips/../data/gallery.js",
        "/frames",
        "/frames/",
        "/clips/ab/../../index.html",
        "/index.html%00.mp4",
        "/data/gallery.js/",
        "/\\..\\..\\etc\\passwd",
        "/%c0%ae%c0%ae/etc/passwd",
        "/predictions.jsonl",
    ],
)
def test_no_name_leads_out_of_the_gallery(server, path):
    status, _, content = ask(server, path)
    assert (status, content) == (404, b"There is no such file in the gallery.\n")


def test_clips_that_the_page_does_not_list_are_not_served(server, benchmarks, evaluated):
    missing = next(clip for clip in benchmarks["mvbench"]["clips"] if clip["problem"])
    assert missing["video"] is None and len(server.videos) > 5
    for video in server.videos.values():
        assert Path(video.source).is_relative_to(evaluated.data)
    (clip,) = {ask(server, f"/{evaluated.data / 'world' / 'clips' / '00000.mp4'}")[0]}
    assert clip == 404


def test_other_hosts_methods_and_garbage_are_refused(server):
    assert ask(server, "/", Host="evil.example")[0] == 403  # DNS rebinding
    assert ask(server, "/", Host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, "/", "POST")[0] == 501
    for garbage in (b"GET\r\n\r\n", b"\x16\x03\x01\x00\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 500 + b"\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
            connection.sendall(garbage)
            assert re.search(rb"\b4\d\d\b", connection.recv(1000))
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")  # and never the rest: others are served meanwhile
        assert ask(server, "/")[0] == 200


def test_clip_that_is_gone_is_said_to_be(copied, site, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    clip = tmp_path / "clip.mp4"
    source = next((copied.data / "world" / "clips").iterdir())
    clip.write_bytes(source.read_bytes())
    file = copied.nano / "nano" / "predictions.jsonl"
    rows = [json.loads(line) | {"video": str(clip)} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with GalleryServer([copied.nano], site=site) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        (video,) = server.videos
        clip.unlink()
        assert ask(server, f"/{video}")[::2] == (404, b"The clip cannot be read any more.\n")
        server.shutdown()


def test_command_prints_its_address_and_ends_cleanly(evaluated, tmp_path):
    """A real process, with the page of the package or, where that is not built, a sentence that says so."""
    port = free_port()
    command = [sys.executable, "-c", "from pllava_cli import app; app()", "gallery", str(evaluated.nano)]
    environment = {**os.environ, "HF_ASSETS_CACHE": str(tmp_path)}
    process = subprocess.Popen(
        [*command, "--no-browser", "--port", port],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        if not line:
            assert "Error: The gallery's page is not built" in process.communicate(timeout=60)[1]
            return
        (address,) = re.findall(r"http://\S+/", line)
        assert urlsplit(address).port == int(port) and "until you press Ctrl-C" in line
        second = subprocess.run(
            [*command, "--no-browser", "--port", port], capture_output=True, text=True, env=environment
        )
        assert second.returncode == 1
        assert f"Error: Port {port} cannot be used (Address already in use): choose another one" in second.stderr
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and "The gallery is closed" in out and "Traceback" not in err
    finally:
        process.kill()
