"""
Attacks on the gate. Each ends in one sentence or in frames; this process lives, no other remains, memory is flat.

`pytest -s tests/media/test_gate_attacks.py` prints the table.
"""

import base64
import os
import random
import re
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import limited_functions as functions
import numpy as np
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
    with_linked_segments,
)
from mutations import MUTATIONS
from video_files import animation, moving_frames, white_png, write_video

import pllava
from pllava.media import MediaGate, MediaLimits, MediaRefused, decoding

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads processes and memory from /proc")
LIMITS = MediaLimits(max_bytes=20_000_000, fetch_seconds=1, decode_seconds=20)
PROCESSOR = pllava.PllavaVideoProcessor(size={"shortest_edge": 48}, num_frames=4)
FRAMES = moving_frames(20)


class Attacks:
    """Runs attacks, and holds what came of each: (its name, the sentence or the frames, seconds)."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str, float]] = []

    def run(self, name: str, read: Callable, refused: bool | None = True) -> str:
        """Read a medium; `refused` says what must come of it, None that both may."""
        began, outcome = time.monotonic(), ""
        try:
            result = read()
            outcome = f"frames {result[0].shape}" if isinstance(result, tuple) else f"image {result.size}"
            assert not refused, f"{name} passed the gate: {outcome}"
        except MediaRefused as error:
            outcome = str(error)
            assert refused is not False, outcome
            assert re.fullmatch(r"Cannot (read|fetch|decode|take) [^\n]+\.", outcome), outcome
            assert not re.search("hunter2|/proc/|Traceback", outcome), outcome
        self.outcomes.append((name, outcome, time.monotonic() - began))
        return outcome

    def print_table(self) -> None:
        print("\n| attack | what comes of it | s |\n|---|---|---:|")
        for name, outcome, seconds in self.outcomes:
            print(f"| {name} | {re.sub('/tmp/[^ ]*/', '.../', outcome)} | {seconds:.2f} |")


@pytest.fixture
def attacks():
    """Afterwards, no process may remain but the fork server and the one that waits, and memory must be as before."""
    warm_up = MediaGate()
    warm_up.load_video(animation(64, 48, 4), PROCESSOR)
    with pytest.raises(MediaRefused):
        warm_up.load_image(white_png(16000, 16000))
    before, files = functions.memory(), len(os.listdir("/proc/self/fd"))
    attacks = Attacks()
    yield attacks
    attacks.print_table()
    after = functions.memory()
    print(f"{len(attacks.outcomes)} attacks; memory of this process: {before} MiB before, {after} MiB after")
    assert len(functions.waiting_processes()) == 1
    assert after - before < 100
    assert len(os.listdir("/proc/self/fd")) <= files + 2
    assert warm_up.load_video(animation(64, 48, 4), PROCESSOR)[0].shape == (4, 48, 64, 3)


def many_frames(path: Path, count: int) -> bytes:
    """Return a small file of so many frames: one packet, over and over."""
    with av.open(str(write_video(path.with_name("one.avi"), FRAMES[:1, :16, :16] * 0, codec="mpeg4"))) as reader:
        stream = reader.streams.video[0]
        packet = next(reader.demux(stream))
        data = bytes(packet)
        with av.open(str(path), "w") as writer:
            copy = writer.add_stream_from_template(stream)
            for number in range(count):
                packet = av.Packet(data)
                packet.pts = packet.dts = number
                packet.is_keyframe, packet.stream, packet.time_base = True, copy, stream.time_base
                writer.mux(packet)
    return path.read_bytes()


def claiming(width: int, height: int, folder: Path) -> bytes:
    """Return a VP8 file whose headers, of the file and of the frames, claim a size of 256 pixels and more."""
    options = {"codec": "libvpx", "deadline": "realtime"}
    webm = write_video(folder / "small.webm", [np.zeros((320, 320, 3), np.uint8)] * 2, **options).read_bytes()
    for prefix, layout, *sides in (
        (b"\xb0\x82", ">H", width),
        (b"\xba\x82", ">H", height),
        (b"\x9d\1*", "<2H", width, height),
    ):
        claimed = prefix + struct.pack(layout, *[320] * len(sides))
        assert claimed in webm
        webm = webm.replace(claimed, prefix + struct.pack(layout, *sides))
    return webm


def test_attacks(attacks, tmp_path, monkeypatch):
    folder, outside = tmp_path / "allowed", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    secret = write_video(outside / "secret.mp4", FRAMES, container_options={"movflags": "frag_keyframe+empty_moov"})
    clip = write_video(folder / "clip.mp4", FRAMES)
    gate = MediaGate(allowed_local_media_path=[folder], limits=LIMITS)

    def load(reference: str | Path | bytes, gate: MediaGate = gate) -> Callable:
        return lambda: gate.load_video(reference, PROCESSOR)

    # Places
    (folder / "link.mp4").symlink_to(secret)
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe.mp4")
    with watching(secret) as was_opened:
        for name, reference in {
            "path traversal": f"{folder}/../outside/secret.mp4",
            "path traversal, encoded": f"{folder.as_uri()}/%2e%2e%2foutside/secret.mp4",
            "path outside": secret,
            "symbolic link out": folder / "link.mp4",
            "linked folder": folder / "linked" / "secret.mp4",
            "named pipe": folder / "pipe.mp4",
            "device": "/dev/zero",
            "null byte": f"{clip}\0.png",
            "line break and a long name": f"{clip}\n{'a' * 1000}",
            "file:": "file:///etc/passwd",
            "file: of another machine": "file://10.0.0.1/clip.mp4",
            **{f"{scheme}:": f"{scheme}://127.0.0.1/clip.mp4" for scheme in ("ftp", "gopher", "rtsp", "rtmp", "smb")},
            **{f"{scheme}:": f"{scheme}:{secret}" for scheme in ("concat", "subfile", "crypto", "cache", "async")},
        }.items():
            attacks.run(name, load(reference))
        assert not was_opened()
    (folder / "pipe.mp4").unlink()

    # Addresses
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **options: look_up("127.0.0.1" if "example" in host else host, *args, **options),
    )
    with Server(clip=content(clip.read_bytes())) as inside, Server() as server:
        public, own = MediaGate(["*"], limits=LIMITS), MediaGate(["*", server.place], limits=LIMITS)
        for host in (
            *("127.0.0.1", "2130706433", "017700000001", "0x7f.1", "127.1", "0", "localhost", "[::1]", "[::]"),
            *("[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "example.org@127.0.0.1", "127。0。0。1", "localhost."),
            *("user:hunter2@169.254.169.254", "private.example.org"),
        ):
            attacks.run(f"http://{host}", load(f"http://{host}:{inside.server_port}/clip", public))
        server.answers = {
            "in": redirect("/again"),
            "again": redirect(f"http://{inside.place}/clip"),
            "name": redirect(f"http://private.example.org:{inside.server_port}/clip"),
            "file": redirect("file:///etc/passwd"),
            "loop": redirect("/loop"),
            "endless": endless(),
            "claims": content(b"", Content_Length="1000000000000"),
            "bomb": gzip_bomb,
            "drip": drip,
            "headers": drip_headers,
            "hls": content(playlists(f"http://{inside.place}/clip")["hls"], Content_Type="video/mp4"),
        }
        for path, name in {
            "in": "redirects into a private network",
            "name": "redirect to a name with a private address",
            "file": "redirect to file:",
            "loop": "redirect without end",
            "endless": "endless body",
            "claims": "huge Content-Length",
            "bomb": "gzip bomb of 67 MB",
            "drip": "a byte every 0.05 s",
            "headers": "headers, a byte every 0.05 s",
            "hls": "playlist at an address",
        }.items():
            attacks.run(name, load(f"http://{server.place}/{path}?key=hunter2", own))

        # Files that refer to others
        with watching(secret) as was_opened:
            for target in (str(secret), f"http://{inside.place}/clip"):
                for kind, text in playlists(target).items():
                    (folder / "list.mp4").write_bytes(text)
                    where = "address" if "http" in target else "file"
                    attacks.run(f"{kind} named .mp4, to a{'n' * (where[0] == 'a')} {where}", load(folder / "list.mp4"))
                    attacks.run(f"{kind} in a data: URI", load(f"data:video/mp4;base64,{encode(text)}"))
            own_track, own_mkv = clip.read_bytes(), write_video(folder / "own.mkv", FRAMES).read_bytes()
            attacks.run("mp4 with its track in another file", load(with_external_track(own_track, str(secret))))
            linked = load(with_linked_segments(own_mkv, str(secret)))
            attacks.run("mkv with linked segments, attachments", linked, refused=False)
            assert not was_opened()
        assert not inside.requests

    # Bombs
    for name, bomb in {
        "GIF of 16,000 x 16,000": animation(16000, 16000, 1),
        "GIF of 3,000 frames of 16 megapixels": animation(4000, 4000, 3000),
        "GIF of 100,000 frames": animation(64, 48, 100_000),
        "mp4 of 100,000 frames": many_frames(tmp_path / "many.mp4", 100_000),
        "avi of 100,000 frames": many_frames(tmp_path / "many.avi", 100_000),
        "PNG of 16,000 x 16,000": white_png(16000, 16000),
        "PNG of 65,535 x 1": white_png(65535, 1),
        "webm that claims 16,000 x 16,000": claiming(16000, 16000, tmp_path),
        "more bytes than the limit": bytes(LIMITS.max_bytes + 1),
    }.items():
        attacks.run(name, load(bomb))
    for name in ("GIF of 16,000 x 16,000", "PNG of 16,000 x 16,000"):
        bomb = animation(16000, 16000, 1) if "GIF" in name else white_png(16000, 16000)
        attacks.run(f"{name}, as an image", lambda bomb=bomb: gate.load_image(bomb))
    base64_bomb = f"data:video/mp4;base64,{'A' * (LIMITS.max_bytes * 4 // 3 + 8)}"
    attacks.run("data: URI above the limit", load(base64_bomb))

    # Decoders
    small = MediaLimits(decode_seconds=1, decode_memory=1 << 28)
    for name in ("hang", "hang_in_c", "compute_forever", "take_memory", "take_memory_in_c", "crash", "leave"):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "decode_video", functions.Decoder(getattr(functions, name)))
            attacks.run(f"decoder that does: {name.replace('_', ' ')}", load(clip, MediaGate([], [folder], small)))
    attacks.run("(a clip, for comparison)", load(clip), refused=False)


def encode(text: bytes) -> str:
    return base64.b64encode(text).decode()


def test_answers_of_a_decoder_that_was_taken_over_are_refused(attacks, tmp_path, monkeypatch):
    gate, clip = MediaGate(), write_video(tmp_path / "clip.mp4", FRAMES).read_bytes()
    metadata = {"total_num_frames": 1}
    for answer in (
        {},
        {"size": [2, 2, 2], "metadata": metadata, "damages": []},  # there are 12 bytes
        {"size": [-1, 10**9, 10**9], "metadata": metadata, "damages": []},
        {"size": "x", "metadata": metadata, "damages": []},
        {"size": [1, 2, 2], "metadata": {"own": 1}, "damages": []},
        {"size": [10**6, 10**6]},
        {"size": "x"},
        {"kind": "video", "own": 1},
    ):
        for function in ("decode_video", "decode_image", "describe"):
            monkeypatch.setattr(decoding, function, functions.Answering(answer))
        for read in (lambda: gate.load_video(clip, PROCESSOR), lambda: gate.load_image(clip), lambda: gate.read(clip)):
            attacks.run(str(answer), read)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pllava.video_decoding_pllava.VideoTruncatedWarning")
def test_mutated_files(attacks, tmp_path):
    rng, gate = random.Random(17), MediaGate(limits=LIMITS)
    options = {"container_options": {"movflags": "faststart"}, "audio": True}
    intact = [
        write_video(tmp_path / "plain.mp4", FRAMES, g=5).read_bytes(),
        write_video(tmp_path / "front.mp4", FRAMES, g=5, **options).read_bytes(),
        write_video(tmp_path / "other.mkv", FRAMES, g=5).read_bytes(),
    ]
    for number in range(300):
        mutated = bytes(rng.choice(MUTATIONS)(bytearray(rng.choice(intact[:2])), rng, rng.choice(intact)))
        attacks.run(f"mutated mp4 {number}", lambda mutated=mutated: gate.load_video(mutated, PROCESSOR), refused=None)
    refused = sum(outcome.startswith("Cannot") for _, outcome, _ in attacks.outcomes)
    print(f"{refused} refused, {300 - refused} decoded")
    assert 30 < refused < 270
    assert max(seconds for *_, seconds in attacks.outcomes) < LIMITS.decode_seconds
    assert np.mean([seconds for *_, seconds in attacks.outcomes]) < 5
