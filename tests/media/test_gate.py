"""What passes the gate: the same frames as without it, from every place that is allowed, and what is said of it."""

import base64
import os
import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hostile_media import Server, content
from PIL import Image
from video_files import moving_frames, write_video

import pllava
from pllava.media import MediaGate, MediaLimits, MediaRefused
from pllava.media.decoding import sample_frames
from pllava.media.places import open_local_file
from pllava.video_decoding_pllava import VideoTruncatedWarning

FRAMES = moving_frames(40, 96, 128)
PROCESSOR = pllava.PllavaVideoProcessor(size={"shortest_edge": 48}, num_frames=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("allowed")
    write_video(folder / "clip.mp4", FRAMES, fps=10, g=12)
    write_video(folder / "clip.webm", FRAMES, codec="libvpx-vp9", deadline="realtime", cpu_used=8)
    write_video(folder / "clip.gif", FRAMES, codec="gif", pix_fmt="rgb8")
    write_video(folder / "sound.mkv", FRAMES, audio=True)
    Image.fromarray(FRAMES[0]).save(folder / "still.png")
    images = [Image.fromarray(frame) for frame in FRAMES[:9]]
    images[0].save(folder / "moving.webp", save_all=True, append_images=images[1:], lossless=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    images[0].save(folder / "turned.jpg", exif=turned)
    return folder


@pytest.fixture(scope="module")
def gate(folder) -> MediaGate:
    return MediaGate(allowed_local_media_path=[folder])


def data_uri(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "sound.mkv", "moving.webp", "still.png"])
def test_frames_are_those_of_the_processor(gate, folder, name):
    path = folder / name
    for options in ({}, {"num_frames": 7}, {"num_frames": 3, "start": 0.5, "end": 1.5}):
        if "still" in name and options.get("end"):
            continue  # it lasts a third of a second
        expected, expected_metadata = sample_frames(PROCESSOR, str(path), **options)
        frames, metadata = gate.load_video(path, PROCESSOR, **options)
        assert frames.dtype == np.uint8 and np.array_equal(frames, expected)
        assert vars(metadata).items() <= vars(expected_metadata).items() and metadata.fps == expected_metadata.fps
        assert list(metadata.frames_indices) == list(expected_metadata.frames_indices)


def test_frames_go_to_the_processor_as_they_are(gate, folder):
    frames, _ = gate.load_video(folder / "clip.mp4", PROCESSOR)
    pixels = PROCESSOR(frames, do_sample_frames=False, do_resize=False, return_tensors="pt").pixel_values_videos
    assert pixels.equal(PROCESSOR(str(folder / "clip.mp4"), return_tensors="pt").pixel_values_videos)


def test_a_medium_may_be_in_any_allowed_place(gate, folder, tmp_path, monkeypatch):
    path = folder / "clip.mp4"
    expected, _ = gate.load_video(path, PROCESSOR)
    (folder / "link.mp4").symlink_to(path)
    (folder / "100%25 ü?.mp4").write_bytes(path.read_bytes())
    percent = base64.b64encode(path.read_bytes()).decode().replace("+", "%2B").replace("/", "%2F")
    monkeypatch.chdir(folder)
    with Server(clip=content(path.read_bytes())) as server:
        media = MediaGate([server.place]).read(f"http://{server.place}/clip")
        references = [
            *(str(path), "clip.mp4", Path("clip.mp4"), path.as_uri(), f"FILE://localhost{path}", "link.mp4"),
            *(str(folder / "nothing" / ".." / "clip.mp4"), f" {path.as_uri()}", (folder / "100%25 ü?.mp4").as_uri()),
            *(data_uri(path), f"DATA:,{''.join(f'%{byte:02x}' for byte in path.read_bytes())}"),
            *(
                f"data:application/octet-stream;base64,{percent}",
                path.read_bytes(),
                bytearray(path.read_bytes()),
                media,
            ),
        ]
    (folder / "nothing").mkdir()
    for reference in references:
        assert np.array_equal(gate.load_video(reference, PROCESSOR)[0], expected), str(reference)[:50]
    assert gate.load_image(folder / "still.png").tobytes() == FRAMES[0].tobytes()
    assert np.array_equal(gate.load_video(media, PROCESSOR)[0], expected)  # as often as it is wanted


def test_images_are_rotated(gate, folder):
    image = gate.load_image(folder / "turned.jpg")
    assert (image.mode, image.size) == ("RGB", (96, 128))
    difference = np.abs(np.array(image).astype(int) - np.rot90(FRAMES[0], 3))
    assert difference.mean() < 20


def test_header_is_read(gate, folder):
    with gate.read(folder / "sound.mkv").file:
        pass
    described = {name: gate.read(folder / name) for name in ("clip.mp4", "sound.mkv", "clip.gif", "still.png")}
    assert {name: (media.kind, media.format.split(",")[0]) for name, media in described.items()} == {
        "clip.mp4": ("video", "mov"),
        "sound.mkv": ("video", "matroska"),
        "clip.gif": ("video", "gif"),
        "still.png": ("image", "png"),
    }
    clip = described["clip.mp4"]
    assert (clip.width, clip.height, clip.frames, clip.seconds, clip.tracks) == (128, 96, 40, 4.0, 1)
    assert clip.file.read() == (folder / "clip.mp4").read_bytes() and clip.name == str(folder / "clip.mp4")
    assert described["sound.mkv"].tracks == 2 and described["still.png"].seconds is None


def test_format_is_read_from_the_content(gate, folder, tmp_path):
    for name in ("clip.webm", "still.png"):
        (folder / "other.mp4").write_bytes((folder / name).read_bytes())
        assert gate.read(folder / "other.mp4").format == gate.read(folder / name).format


def test_a_damaged_file_is_a_warning_here(gate, folder):
    broken = (folder / "clip.gif").read_bytes()[:-2000]
    with pytest.warns(VideoTruncatedWarning, match=r"^<[\d,]+ bytes> is damaged or ends early"):
        gate.load_video(broken, PROCESSOR)


@pytest.mark.parametrize(
    ("limits", "name", "problem"),
    [
        ({"max_bytes": 3000}, "clip.mp4", "it has more than 3,000 bytes"),
        ({"max_seconds": 3.5}, "clip.mp4", "it lasts 4 s, more than 3.5 s"),
        ({"max_frames": 39}, "clip.mp4", "it has 40 frames, more than 39"),
        ({"max_frames": 39}, "clip.gif", "it has 40 frames, more than 39"),
        ({"max_frames": 39}, "clip.webm", "it has 40 frames, more than 39"),  # whose header has no count
        ({"max_frames": 8}, "moving.webp", "it has 9 frames, more than 8"),
        ({"max_pixels": 12_000}, "clip.mp4", "its frames are 128 x 96, more than 12,000 pixels"),
        ({"max_pixels": 12_000}, "still.png", "its frames are 128 x 96, more than 12,000 pixels"),
        ({"max_pixels": 12_000}, "clip.gif", "its frames are 128 x 96, more than 12,000 pixels"),
        ({"max_tracks": 1}, "sound.mkv", "it has 2 tracks, more than 1"),
        ({"decode_seconds": 0.01}, "clip.webm", "decoding takes longer than 0.01 s"),
        ({"decode_memory": 1 << 20}, "clip.webm", "can be decoded"),
    ],
)
def test_limits(folder, limits, name, problem):
    gate = MediaGate(allowed_local_media_path=[folder], limits=MediaLimits(**limits))
    content = (folder / name).read_bytes()
    for reference in (folder / name, content, data_uri(folder / name)):
        with pytest.raises(MediaRefused, match=re.escape(problem)):
            gate.load_video(reference, PROCESSOR)
    if name not in ("clip.gif", "clip.webm"):  # whose header says enough
        with pytest.raises(MediaRefused, match=re.escape(problem)):
            gate.read(content)
    if "max_pixels" in limits and name != "clip.mp4":
        with pytest.raises(MediaRefused, match=re.escape(problem)):
            gate.load_image(content)


def test_header_limits_are_checked_before_decoding(folder, gate):
    """A header that says too much is enough; the rest of the file may be missing."""
    tracks = folder / "tracks.mkv"
    with av.open(str(tracks), "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in range(40)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for stream in streams:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(FRAMES[0, :48, :64], format="rgb24")))
            container.mux(stream.encode(None))
    for read in (gate.read, lambda reference: gate.load_video(reference, PROCESSOR)):
        with pytest.raises(MediaRefused, match="it has 40 tracks, more than 32"):
            read(tracks)


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("data:video/mp4;base64", "it has no comma"),
        ("data:video/mp4;base64,!!!!", "its base64 is broken"),
        ("data:video/mp4;base64,AAA", "its base64 is broken"),
        ("data:video/mp4;base64,", "it is empty"),
        (b"", "it is empty"),
        ("file://other-machine/clip.mp4", "of another machine"),
        ("file://[/clip.mp4", "malformed"),
        ("", "is not a file in a folder that may be read"),
        ("data:video/mp4;base64,AAAA", "neither a video nor an image"),
    ],
)
def test_reference_that_is_not_one_is_refused(gate, reference, problem):
    with pytest.raises(MediaRefused, match=problem):
        gate.read(reference)


def test_parts_that_do_not_exist_are_refused(gate, folder):
    for options, problem in {
        (("num_frames", 0),): "0 frames",
        (("start", 99.0),): "at or past the video's end",
        (("start", 2.0), ("end", 1.0)): "before it starts",
    }.items():
        with pytest.raises(MediaRefused, match=problem):
            gate.load_video(folder / "clip.mp4", PROCESSOR, **dict(options))
    with pytest.raises(MediaRefused, match=r"clip.mp4: it is not an image of these formats. Give a whole file"):
        gate.load_image(folder / "clip.mp4")


# --- files of this machine -------------------------------------------------------------------------------------------


def test_only_files_below_allowed_folders_are_read(gate, folder, tmp_path):
    """What is refused is refused in the same words, whether it exists or not."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes((folder / "clip.mp4").read_bytes())
    (folder / "out.mp4").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe.mp4")
    beside = folder.with_name(f"{folder.name}-beside")
    beside.mkdir()
    (beside / "clip.mp4").write_bytes(secret.read_bytes())
    for reference in [
        *(secret, str(secret), secret.as_uri(), beside / "clip.mp4", tmp_path / "missing.mp4", "/etc/passwd"),
        *(f"{folder}/../{tmp_path.name}/secret.mp4", f"{folder.as_uri()}/%2e%2e/{tmp_path.name}/secret.mp4"),
        *(folder / "out.mp4", folder / "out" / "secret.mp4", folder / "loop", folder / "missing.mp4"),
        *(
            folder,
            f"{folder}/.",
            folder / "pipe.mp4",
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/environ",
            "/proc/self/mem",
        ),
        *(
            f"{folder}/clip.mp4\0",
            f"{folder}/{'a' * 5000}",
            "~/clip.mp4",
            f"{folder}\\..\\{tmp_path.name}",
            "file:///",
        ),
    ]:
        with pytest.raises(MediaRefused, match="is not a file in a folder that may be read. Upload it instead.$"):
            gate.read(reference)
    with pytest.raises(MediaRefused):
        MediaGate().read(folder / "clip.mp4")
    (folder / "pipe.mp4").unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the path of an open file")
def test_a_link_that_changes_between_check_and_opening_leads_nowhere(folder, tmp_path, monkeypatch):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    (folder / "inner").mkdir()
    (folder / "inner" / "secret.mp4").write_bytes(b"public")
    open_file, swapped = os.open, []

    def swap_and_open(path, *args, **options):
        if not swapped and str(path).endswith("secret.mp4"):
            swapped.append((folder / "inner").rename(folder / "aside"))
            (folder / "inner").symlink_to(tmp_path)
        return open_file(path, *args, **options)

    monkeypatch.setattr(os, "open", swap_and_open)
    with pytest.raises(MediaRefused, match="may be read"):
        open_local_file(folder / "inner" / "secret.mp4", "x", [folder], MediaLimits())
    assert swapped


def test_a_file_that_is_replaced_while_it_is_read_stays_the_one_that_was_checked(gate, folder):
    path = folder / "replaced.mp4"
    path.write_bytes((folder / "clip.mp4").read_bytes())
    expected, _ = gate.load_video(path, PROCESSOR)
    media = gate.read(path)
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert np.array_equal(gate.load_video(media, PROCESSOR)[0], expected)
    path.unlink()
