"""Videos as paths, URLs, bytes, files, folders and images; inputs that are not videos."""

from __future__ import annotations

import base64
import http.server
import io
import os
import threading
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_files import decode_all, moving_frames, take, write_video

from pllava.video_decoding_pllava import load_frames
from pllava.video_source_pllava import VideoDecodeError

FRAMES = moving_frames(50)


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, g=12)


def test_paths_bytes_and_files_give_the_same_frames(mp4, tmp_path):
    expected = decode_all(mp4)[[7, 30]]
    content = mp4.read_bytes()
    strange = tmp_path / "concat:a|b, 100% ?.mp4"
    strange.write_bytes(content)
    for source in (mp4, str(mp4), mp4.as_uri(), strange, strange.as_uri(), content, bytearray(content)):
        assert np.array_equal(load_frames(source, take([7, 30]))[0], expected)
    with open(mp4, "rb") as file:
        file.seek(100)
        assert np.array_equal(load_frames(file, take([7, 30]))[0], expected)
        assert not file.closed and file.tell() == 100
    written = io.BytesIO()
    written.write(content)
    assert np.array_equal(load_frames(written, take([7, 30]))[0], expected)


def test_urls_are_downloaded(mp4):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(mp4.parent))
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        frames, _ = load_frames(f"{url}/clip.mp4", take([7]))
        assert np.array_equal(frames[0], decode_all(mp4)[7])
        with pytest.raises(VideoDecodeError, match=f"{url}/other.mp4.*404"):
            load_frames(f"{url}/other.mp4")
        server.shutdown()
    with pytest.raises(VideoDecodeError, match=f"Cannot download {url}/clip.mp4"):
        load_frames(f"{url}/clip.mp4")


def test_data_urls_are_decoded(mp4):
    """OpenAI-compatible servers pass videos in requests on as data URLs."""
    content = mp4.read_bytes()
    expected = load_frames(content)[0]
    frames, _ = load_frames(f"data:video/mp4;base64,{base64.b64encode(content).decode()}")
    assert np.array_equal(frames, expected)
    with pytest.raises(VideoDecodeError, match=r"^Cannot decode data:video/mp4;base64,bm90IGEgdmlkZW8=\.\.\.: "):
        load_frames("data:video/mp4;base64,bm90IGEgdmlkZW8=")
    with pytest.raises(VideoDecodeError, match="Give data:video/mp4;base64"):
        load_frames("data:video/mp4")


def test_image_folder_is_a_video(tmp_path):
    for number in (1, 2, 10):
        Image.fromarray(FRAMES[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    frames, metadata = load_frames(tmp_path, take([2, 0, 2]))
    assert np.array_equal(frames, FRAMES[[10, 1, 10]])
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (3, 3, 1)
    assert (metadata.height, metadata.width) == (48, 64)
    Image.fromarray(FRAMES[1, :20]).save(tmp_path / "3.png")
    with pytest.raises(VideoDecodeError, match="image 2 is"):
        load_frames(tmp_path)
    (tmp_path / "0.jpg").write_bytes(b"not an image")
    with pytest.raises(VideoDecodeError, match="0.jpg: .*Give a whole image"):
        load_frames(tmp_path)


def test_image_file_is_a_video(tmp_path):
    images = [Image.fromarray(frame) for frame in FRAMES[:3]]
    images[0].save(tmp_path / "clip.webp", save_all=True, append_images=images[1:], lossless=True)
    images[0].save(tmp_path / "still.png")
    assert np.array_equal(load_frames(tmp_path / "clip.webp", take([2, 0]))[0], FRAMES[[2, 0]])
    frames, metadata = load_frames((tmp_path / "still.png").read_bytes())
    assert np.array_equal(frames, FRAMES[:1]) and metadata.total_num_frames == 1


def test_undecodable_input_raises_a_clear_error(mp4, tmp_path):
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    endless = tmp_path / "endless.mp4"
    endless.write_bytes(mp4.read_bytes()[:-2000])  # the index of an mp4 is at its end
    text = tmp_path / "text.mp4"
    text.write_text("this is not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    blank = mp4.read_bytes()
    data, index = blank.index(b"mdat") + 4, blank.index(b"moov") - 4
    (tmp_path / "blank.mp4").write_bytes(blank[:data] + bytes(index - data) + blank[index:])
    for source, reason in {
        tmp_path / "missing.mp4": "no such file",
        tmp_path / "empty.mp4": "empty",
        tmp_path / "folder": "no images",
        text: "no video",
        sound: "no video stream",
        endless: "no video",
        tmp_path / "blank.mp4": "not one frame",
        "rtsp://127.0.0.1/camera": "rtsp://",
        b"": "empty",
        b"no video " * 100: "900 bytes.*no video",
    }.items():
        name = "bytes" if isinstance(source, bytes) else os.path.basename(source)
        with pytest.raises(VideoDecodeError, match=f"Cannot decode .*{name}.*{reason}.* Give a "):
            load_frames(source)


def test_playlists_cannot_reach_other_files(tmp_path):
    """A playlist is refused by name and by content, although the video that it refers to is readable."""
    secret = write_video(tmp_path / "secret.ts", FRAMES, g=12)
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    fragmented = write_video(tmp_path / "secret.mp4", FRAMES, g=12, container_options=fragments)
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2.0,\n{secret}\n#EXT-X-ENDLIST\n"
    dash = f"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:
    profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">
    <Representation id="1" bandwidth="1"><BaseURL>{fragmented}</BaseURL></Representation>
    </AdaptationSet></Period></MPD>"""
    concat = f"ffconcat version 1.0\nfile '{secret}'\n"
    for suffix, text in {"m3u8": hls, "mpd": dash, "ffconcat": concat}.items():
        path = tmp_path / f"list.{suffix}"
        path.write_text(text)
        disguised = tmp_path / f"{suffix}.mp4"
        disguised.write_text(text)
        for source in (path, disguised, text.encode()):
            with pytest.raises(VideoDecodeError):
                load_frames(source)
    path = tmp_path / "list.m3u8"
    with av.open(str(path)) as container:  # without our list of formats, ffmpeg follows it
        assert len(list(container.decode(video=0))) == 50
    for address in (f"concat:{secret}", f"subfile,,start,0,end,0,,:{secret}", f"file:{tmp_path / 'missing'}"):
        with pytest.raises(VideoDecodeError, match="no such file"):
            load_frames(address)
