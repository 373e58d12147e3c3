"""
Attacks on a server, through HTTP: each is refused with a 4xx and one sentence, opens and fetches nothing that it may
not, and leaves the server alive. `pytest -s` prints the table.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from hostile_media import (
    Server,
    content,
    drip,
    drip_headers,
    endless,
    gzip_bomb,
    playlists,
    redirect,
    watching,
    with_external_track,
)
from model_server import ModelServer, World, data_uri, image_part, running, text_part, user, video_part
from video_files import animation, white_png

from pllava import NANO, load_model
from pllava.loading import load_processor
from pllava.media import MediaRefused
from pllava.serving.chat import ChatHandler
from pllava.serving.errors import ApiError
from pllava.serving.logs import Call
from pllava.serving.metrics import Metrics
from pllava.serving.requests import ChatRequest

# A server with small limits for what is fetched, and with a name server that the attacker controls
PROGRAM = """
import itertools, socket, sys
from pllava import NANO, load_model
from pllava.loading import load_processor
from pllava.media import MediaGate, MediaLimits
from pllava.serving.server import bind, serve

answers = {"private.test": itertools.repeat("127.0.0.1"), "rebind.test": itertools.chain(["8.8.8.8"], itertools.repeat("127.0.0.1"))}
look_up = socket.getaddrinfo
socket.getaddrinfo = lambda host, *args, **options: look_up(next(answers.get(host, iter([host]))), *args, **options)
model = load_model(NANO, check=False)
gate = MediaGate(["*", sys.argv[2]], [sys.argv[1]], MediaLimits(max_bytes=1 << 25, fetch_seconds=1))
serve("nano", model, load_processor(model), gate, bind("127.0.0.1", 0), 32)
"""  # noqa: E501
SCHEMES = ["ftp", "gopher", "rtsp", "rtmp", "tcp", "udp", "concat", "subfile", "pipe", "fd", "crypto", "tls", "unix"]
LOOPBACKS = """
127.0.0.1 localhost 2130706433 017700000001 0x7f000001 127.1 0 [::1] [::ffff:127.0.0.1] [0:0:0:0:0:0:0:1] ①②⑦.⓪.⓪.①
[64:ff9b::7f00:1] example.org@127.0.0.1 169.254.169.254 10.0.0.1 private.test rebind.test
""".split()
MUTATIONS = 300


@dataclass
class Target:
    """A server under attack, the folder that it may read, and what it must leave alone."""

    server: ModelServer
    folder: Path
    secret: Path
    inside: Server
    outside: Server
    clip: bytes
    rows: list[str] = field(default_factory=list)

    def attack(self, name: str, *parts: dict, **change: Any) -> None:
        """Send a request with these parts, or this change of a good one; it must be refused."""
        body = {"model": "nano", "messages": [user(*parts, text_part("What moves?"))], "max_tokens": 2, **change}
        self.expect_refusal(name, lambda: self.server.post(body))

    def expect_refusal(self, name: str, send: Callable[[], httpx.Response]) -> None:
        began = time.perf_counter()
        reply = send()
        seconds = time.perf_counter() - began
        message = reply.json()["error"]["message"]
        self.rows.append(f"{ascii(name)[:48]:48}  {reply.status_code}  {seconds:5.2f} s  {ascii(message)[:200]}")
        assert 400 <= reply.status_code < 500, self.rows[-1]
        assert message.endswith(".") and "\n" not in message and len(message) < 4300
        shown = str(self.secret) in message
        assert not shown or str(self.secret).encode() in reply.request.content, "it shows where a link leads"

    def media(self, name: str, url: str) -> None:
        self.attack(f"{name}, as a video", video_part(url))
        self.attack(f"{name}, as an image", image_part(url))


@pytest.fixture(scope="module")
def target(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder, elsewhere = (tmp_path_factory.mktemp(name) for name in ("allowed", "elsewhere"))
    clip = world.clips[0].read_bytes()
    secret = elsewhere / "secret.mp4"
    secret.write_bytes(clip)
    (folder / "clip.mp4").write_bytes(clip)
    with Server(clip=content(clip)) as inside, Server(clip=content(clip)) as outside:
        command = [sys.executable, "-c", PROGRAM, str(folder), outside.place]
        with running(command, tmp_path_factory.mktemp("attacked")) as server:
            yield Target(server, folder, secret, inside, outside, clip)


def test_attacks(target: Target) -> None:
    good = {"model": "nano", "messages": [user(video_part(data_uri(target.clip)), text_part("What moves?"))]}
    expected = target.server.post(good).json()["choices"]
    with watching(target.secret) as was_opened:
        attack_with_paths(target)
        attack_with_addresses(target)
        attack_with_playlists(target)
        attack_with_downloads(target)
        attack_with_bombs(target)
        assert not was_opened()
    print("", *target.rows, f"{len(target.rows)} attacks", sep="\n")
    assert not target.inside.requests
    assert target.server.get("/health").status_code == 200
    assert target.server.post(good).json()["choices"] == expected
    assert "Traceback" not in target.server.log


def attack_with_paths(target: Target) -> None:
    folder, secret = target.folder, target.secret
    up = f"{folder}/../{secret.parent.name}/{secret.name}"
    (folder / "link.mp4").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent)
    paths = [str(secret), up, f"{folder}/clip.mp4/../../{secret.parent.name}/{secret.name}", f"{folder}/link.mp4"]
    paths += [f"{folder}/linked/{secret.name}", "/etc/passwd", "/dev/zero", "/proc/self/environ", str(folder), "."]
    paths += [
        f"{folder}/../../../../../etc/passwd",
        f"{folder}/clip.mp4\0",
        "clip.mp4",
        "~/x.mp4",
        "a" * 4000,
        "a" * 5000,
        "a\nb",
    ]
    for path in paths:
        target.media(path, path)
        target.media(f"file:{path}", f"file://{path}")
    target.media("an encoded ..", f"file://{folder}/%2e%2e/{secret.parent.name}/{secret.name}")
    target.media("file: of another machine", f"file://example.org{secret}")
    for name in ("model", "role", "type"):
        message = user(text_part("x"))
        change = {"model": up} if name == "model" else {"messages": [message | {name: up}]}
        target.attack(f"a path as {name}", **change)
    for field_ in ("tools", "generation_config", "chat_template_kwargs", "documents", "images", "videos"):
        target.attack(f"a path in {field_}", **{field_: [up]})
    target.attack("a path in media_io_kwargs", media_io_kwargs={"video": {"path": up}})
    for part in ({"type": "video", "path": up}, {"type": "image", "url": up}, {"type": "image", "base64": "AAAA"}):
        target.attack(f"transformers' {part['type']} with {list(part)[1]}", part)
    for path in ("/../../etc/passwd", "/v1/models/../../../etc/passwd", "/v1/files/%2e%2e%2fetc%2fpasswd"):
        target.expect_refusal(f"GET {path}", lambda path=path: target.server.get(path))


def attack_with_addresses(target: Target) -> None:
    port = target.inside.server_port
    for host in LOOPBACKS:
        target.attack(f"http://{host}", video_part(f"http://{host}:{port}/clip"))
    for scheme in SCHEMES:
        target.attack(f"{scheme}:", video_part(f"{scheme}://127.0.0.1:{port}/clip"))
    for url in (
        "http://",
        "http://[",
        "http:///x",
        "https://\n127.0.0.1",
        "javascript:1",
        "data:",
        "data:,",
        "data:x",
    ):
        target.attack(repr(url), video_part(url))
    private = f"http://{target.inside.place}/clip"
    for name, goal in [
        ("here", private),
        ("a file", target.secret.as_uri()),
        ("data", "data:,x"),
        ("ftp", "ftp://a/"),
    ]:
        target.outside.answers["away"] = redirect(goal)
        target.outside.answers["first"] = redirect("/away")
        target.attack(f"redirects to {name}", video_part(f"http://{target.outside.place}/first"))


def attack_with_playlists(target: Target) -> None:
    goals = [f"http://{target.inside.place}/clip", str(target.secret)]
    for address, path in zip(*(playlists(goal).items() for goal in goals), strict=True):
        kind = address[0]
        (target.folder / "playlist.mp4").write_bytes(path[1])
        target.outside.answers["playlist.mp4"] = content(address[1], Content_Type="video/mp4")
        target.attack(f"{kind} that names an address", video_part(f"http://{target.outside.place}/playlist.mp4"))
        target.attack(f"{kind} that names a file", video_part(f"{target.folder}/playlist.mp4"))
        target.attack(f"{kind} as an image", image_part(data_uri(path[1], "image/png")))


def attack_with_downloads(target: Target) -> None:
    large = {"Content_Length": str(10**15)}
    answers = {
        "a huge Content-Length": content(target.clip, **large),
        "an endless body": endless(),
        "a slow body": drip,
        "slow headers": drip_headers,
        "a gzip bomb": gzip_bomb,
        "an error page": content(b"<html>no</html>"),
        "an empty body": content(b""),
        "a loop of redirects": redirect("/x"),
    }
    for name, answer in answers.items():
        target.outside.answers["x"] = answer
        target.attack(name, video_part(f"http://{target.outside.place}/x"))


def attack_with_bombs(target: Target) -> None:
    external = with_external_track(target.clip, str(target.secret))
    target.attack("samples in another file", video_part(data_uri(external)))
    target.media("a PNG of 30,000 x 30,000", data_uri(white_png(30_000, 30_000)))
    target.media("a GIF of 16,000 x 16,000", data_uri(animation(16_000, 16_000, 2)))
    target.attack("a GIF of 100,000 frames", video_part(data_uri(animation(16, 16, 100_000))))
    target.attack("an mp4 of 100,000 frames", video_part(data_uri(repeated(target.clip, 100_000, target.folder))))
    target.attack("a text file", video_part(data_uri(b"hello " * 1000)))
    target.attack("half an mp4", video_part(data_uri(target.clip[: len(target.clip) // 2])))
    target.attack("17 videos", *[video_part("data:,")] * 17)
    target.attack("10,000 messages of images", messages=[user(image_part("data:,"))] * 10_000)
    target.attack("deep JSON", messages=json.loads("[" * 500 + "]" * 500))


def repeated(clip: bytes, count: int, folder: Path) -> bytes:
    """Return an mp4 that has the smallest packet of a clip `count` times."""
    source, path = folder / "one.mp4", folder / "many.mp4"
    source.write_bytes(clip)
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        packet = min((packet for packet in reader.demux(stream) if packet.size), key=lambda each: each.size)
        for number in range(count):
            packet.pts = packet.dts = number * 512
            packet.stream = copy
            writer.mux(packet)
    return path.read_bytes()


def test_nothing_but_the_gate_fetches() -> None:
    """With a gate that refuses everything, no form of address causes a request, and no file is opened."""

    class ClosedGate:
        asked: list[tuple] = []

        def load_video(self, *args) -> None:
            self.asked.append(args)
            raise MediaRefused("It is closed.")

        load_image = load_video

    model = load_model(NANO, check=False)
    with ThreadPoolExecutor(1) as decoders, Server(x=content(b"")) as outside:
        handler = ChatHandler("nano", model, load_processor(model), ClosedGate(), decoders, Metrics())
        for part in (video_part, image_part):
            body = {"model": "nano", "messages": [user(part(f"http://{outside.place}/x"))]}
            with pytest.raises(ApiError, match="It is closed."):
                asyncio.run(handler.handle_request(ChatRequest.parse(json.dumps(body).encode()), Call("1")))
        assert not outside.requests
        # Unasked, the model's own number of frames is taken
        assert ClosedGate.asked[0][1:] == (handler.processor.video_processor, None, None, None)


@pytest.mark.slow
def test_mutated_files(target: Target) -> None:
    rng = random.Random(8)
    statuses: dict[int, int] = {}
    for _ in range(MUTATIONS):
        mutated = bytearray(target.clip)
        for _ in range(rng.choice([1, 4, 30])):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        if rng.random() < 0.2:
            del mutated[rng.randrange(len(mutated)) :]
        body = {"model": "nano", "messages": [user(video_part(data_uri(bytes(mutated))))], "max_tokens": 2}
        reply = target.server.post(body)
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        assert reply.status_code in (200, 400), reply.text
    print(f"\n{MUTATIONS} mutated mp4s: {statuses}")
    assert target.server.get("/health").status_code == 200 and "Traceback" not in target.server.log
