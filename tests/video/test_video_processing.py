"""The video processor: which frames it takes, every form of a video, pixels, and errors."""

import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata
from video_files import decode_all, moving_frames, write_video

from pllava import PllavaProcessor, PllavaVideoProcessor
from pllava.video_processing_pllava import UNNORMALIZED
from pllava.video_source_pllava import VideoDecodeError

VIDEO_TOKENS = 36  # 4 x 3 x 3
MIDDLES = {20: [2, 7, 12, 16], 30: [3, 10, 17, 25]}  # of four intervals, by number of frames


def taken(processor: PllavaProcessor, video: Any, **kwargs) -> list[int]:
    """Return the indices of the frames that are taken."""
    return list(processor.video_processor(video, return_metadata=True, **kwargs)["video_metadata"][0].frames_indices)


def frames_of(processor: PllavaProcessor, frames: np.ndarray, indices: list[int]) -> torch.Tensor:
    """Return the pixels of these decoded frames, `(1, frames, 3, 48, 48)`."""
    return processor.video_processor(frames[indices], do_sample_frames=False, return_tensors="pt")[
        "pixel_values_videos"
    ]


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "fps", "num_frames", "clip", "expected"),
    [
        # Recordings of the original's evaluation and demo
        (1, 25.0, 1, None, [0]),
        (1, 25.0, 4, None, [0, 0, 0, 0]),
        (2, 25.0, 4, None, [0, 0, 0, 1]),
        (8, 25.0, 1, None, [3]),
        (18, 25.0, 4, None, [2, 6, 10, 15]),
        (31, 25.0, 1, None, [15]),
        (302, 25.0, 8, None, [18, 56, 93, 131, 168, 206, 244, 281]),
        (5400, 25.0, 1, None, [2699]),
        (301, 25.0, 4, (2.3, 9.7), [80, 126, 172, 219]),
        (301, 30.0, 4, (0, 0.4), [1, 4, 7, 10]),
        (301, 30.0, 8, (2.3, 9.7), [82, 110, 138, 165, 193, 221, 248, 276]),
        (301, 3.0, 8, (8.0, 8.0), [24] * 8),
        (301, 3.0, 16, (0, 0.4), [0] * 9 + [1] * 7),
        (301, 3.0, 4, (100.0, 120.0), [300] * 4),
    ],
)
def test_uniform_sampling_equals_the_original(
    total: int, fps: float, num_frames: int, clip: tuple[float, float] | None, expected: list[int]
) -> None:
    bounds = dict(zip(("start", "end"), clip, strict=True)) if clip else {}
    metadata = VideoMetadata(total_num_frames=total, fps=fps)
    indices = PllavaVideoProcessor().sample_frames(metadata, num_frames=num_frames, **bounds)
    assert indices.dtype == np.int64 and indices.tolist() == expected


@pytest.mark.parametrize(
    ("total", "video_fps", "fps", "expected"),
    [
        # Recordings of the original's training
        (250, 25.0, 0.5, [25, 75, 125, 175, 225]),
        (301, 29.97, 0.5, [30, 90, 150, 210, 270]),
        (250, 25.0, 1, [12, 38, 62, 88, 112, 138, 162, 188, 212, 238]),
        (10, 25.0, 1, [0]),
        (4, 2.0, 4, [0, 1, 1, 2, 2, 3, 3, 3]),
    ],
)
def test_sampling_by_fps_equals_the_original(total: int, video_fps: float, fps: float, expected: list[int]) -> None:
    metadata = VideoMetadata(total_num_frames=total, fps=video_fps)
    assert PllavaVideoProcessor().sample_frames(metadata, fps=fps).tolist() == expected


@pytest.mark.parametrize(("total", "first", "last"), [(20, 0, 19), (21, 0, 20), (40, 10, 29), (3, 0, 2)])
def test_random_sampling_covers_each_interval(total: int, first: int, last: int) -> None:
    torch.manual_seed(0)
    clip = {} if last == total - 1 else {"start": first / 10, "end": last / 10}
    metadata = VideoMetadata(total_num_frames=total, fps=10.0)
    processor = PllavaVideoProcessor()
    drawn = np.stack([processor.sample_frames(metadata, num_frames=4, sampling="random", **clip) for _ in range(2000)])
    edges = np.linspace(first, last + 1, min(4, last - first + 1) + 1).astype(int)
    for column in range(4):
        # The last frame of a clip of fewer frames is repeated
        interval = range(edges[column], edges[column + 1]) if column < len(edges) - 1 else [last]
        assert set(drawn[:, column].tolist()) == set(interval)
    assert (np.diff(drawn) >= 0).all()
    torch.manual_seed(0)
    again = processor.sample_frames(metadata, num_frames=4, sampling="random", **clip)
    assert again.tolist() == drawn[0].tolist()


# --- forms of a video ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoded(clips: list[Path]) -> np.ndarray:
    """Return all 20 frames of the first clip."""
    return decode_all(clips[0])


@pytest.fixture(scope="module")
def folder(clips: list[Path], decoded: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number, frame in enumerate(decoded, start=1):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def url(clips: list[Path]) -> Any:
    handler = partial(SimpleHTTPRequestHandler, directory=str(clips[0].parent))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{clips[0].name}"
    server.shutdown()
    server.server_close()


FORMS = {
    "path": lambda clip, decoded, folder, url: str(clip),
    "pathlib": lambda clip, decoded, folder, url: clip,
    "bytes": lambda clip, decoded, folder, url: clip.read_bytes(),
    "file object": lambda clip, decoded, folder, url: io.BytesIO(clip.read_bytes()),
    "url": lambda clip, decoded, folder, url: url,
    "folder": lambda clip, decoded, folder, url: folder,
    "array": lambda clip, decoded, folder, url: decoded,
    "array, channels first": lambda clip, decoded, folder, url: decoded.transpose(0, 3, 1, 2),
    "tensor": lambda clip, decoded, folder, url: torch.from_numpy(decoded),
    "tensor, channels first": lambda clip, decoded, folder, url: torch.from_numpy(decoded).permute(0, 3, 1, 2),
    "images": lambda clip, decoded, folder, url: [Image.fromarray(frame) for frame in decoded],
    "arrays of images": lambda clip, decoded, folder, url: list(decoded),
    "tensors of images": lambda clip, decoded, folder, url: list(torch.from_numpy(decoded).permute(0, 3, 1, 2)),
    "paths of images": lambda clip, decoded, folder, url: [str(folder / f"{n}.png") for n in range(1, 21)],
    "pathlib of images": lambda clip, decoded, folder, url: [folder / f"{n}.png" for n in range(1, 21)],
    "dict with a path": lambda clip, decoded, folder, url: {"path": str(clip)},
    "dict with a url": lambda clip, decoded, folder, url: {"url": url},
    "dict with bytes": lambda clip, decoded, folder, url: {"bytes": clip.read_bytes(), "path": "not/there.mp4"},
    "dict of datasets": lambda clip, decoded, folder, url: {"video": {"bytes": None, "path": str(clip)}},
    "dict with an array": lambda clip, decoded, folder, url: {"video": decoded},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_video_gives_the_same_pixels(
    processor: PllavaProcessor, clips: list[Path], decoded: np.ndarray, folder: Path, url: str, form: str
) -> None:
    video = FORMS[form](clips[0], decoded, folder, url)
    expected = frames_of(processor, decoded, MIDDLES[20])
    for videos in (video, [video], [[video], []]):
        outputs = processor.video_processor(videos, return_tensors="pt", return_metadata=True)
        torch.testing.assert_close(outputs["pixel_values_videos"], expected)
        assert list(outputs["video_metadata"][0].frames_indices) == MIDDLES[20]
    text = processor(text=f"{processor.video_token} What happens?", videos=video, return_tensors="pt")
    torch.testing.assert_close(text["pixel_values_videos"], expected)
    assert (text["input_ids"] == processor.video_token_id).sum() == VIDEO_TOKENS


def test_gif_is_a_video(processor: PllavaProcessor, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (48, 48), (10 * number, 0, 0)) for number in range(10)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    pixels = processor.video_processor(tmp_path / "clip.gif", return_tensors="pt")["pixel_values_videos"][0]
    mean, std = processor.video_processor.image_mean[0], processor.video_processor.image_std[0]
    reds = (pixels[:, 0].mean((1, 2)) * std + mean) * 255
    assert (reds / 10).round().tolist() == [1, 3, 5, 8]


def test_forms_may_be_mixed_in_one_call(
    processor: PllavaProcessor, clips: list[Path], decoded: np.ndarray, folder: Path
) -> None:
    videos = [str(clips[1]), decoded, [[folder], {"path": clips[2], "start": 1.0, "end": 2.9}], list(decoded)]
    outputs = processor.video_processor(videos, return_tensors="pt", return_metadata=True)
    indices = [list(metadata.frames_indices) for metadata in outputs["video_metadata"]]
    assert indices == [MIDDLES[30], MIDDLES[20], MIDDLES[20], [12, 17, 22, 26], MIDDLES[20]]
    same = frames_of(processor, decoded, MIDDLES[20])[0]
    for row in (1, 2, 4):
        torch.testing.assert_close(outputs["pixel_values_videos"][row], same)
    batch = torch.from_numpy(np.stack([decoded, decoded[::-1]]))
    assert processor.video_processor(batch, return_tensors="pt")["pixel_values_videos"].shape == (2, 4, 3, 48, 48)


def test_sub_clips_are_cut_by_seconds(processor: PllavaProcessor, clips: list[Path], decoded: np.ndarray) -> None:
    """The clip has 20 frames at 10 fps."""
    assert taken(processor, {"path": clips[0], "start": 0.5, "end": 1.2}) == [5, 7, 9, 10]
    assert taken(processor, {"path": clips[0], "start": 1.0}) == [11, 13, 15, 18]
    assert taken(processor, {"path": clips[0], "end": 0.3}) == [0, 1, 2, 2]
    assert taken(processor, {"path": clips[0], "start": None, "end": None}) == MIDDLES[20]
    assert taken(processor, {"path": clips[0], "start": 1.5, "end": 9.0}) == taken(
        processor, {"path": clips[0], "start": 1.5}
    )
    assert taken(processor, {"path": clips[0], "start": 1.95, "end": 2.0}) == [19] * 4
    rate = [{"total_num_frames": 20, "fps": 10.0}]
    assert taken(processor, {"video": decoded, "start": 0.5, "end": 1.2}, video_metadata=rate) == [5, 7, 9, 10]
    assert taken(processor, {"video": decoded, "start": 0.5, "end": 1.2}, video_metadata=rate[0]) == [5, 7, 9, 10]
    assert taken(processor, {"path": clips[0], "start": 0.5, "end": 1.2}, fps=5) == [6, 8, 10, 12]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        # Here the original counts backwards and takes frames before the sub-clip
        (
            {"start": 100, "end": 120},
            r"starts \(`start`=100, `end`=120\) at or past the video's end: .* 2.000 s long",
        ),
        ({"start": 2.0}, r"`start`=2.0\) at or past"),
        ({"start": 2.01}, r"`start`=2.01\) at or past"),
        ({"start": 1e308}, r"`start`=1e\+308\) at or past"),
        ({"start": float("inf")}, "`start` is inf"),
        ({"start": 0.5, "end": float("nan")}, "`end` is nan"),
        ({"start": 1.5, "end": 0.5}, r"ends \(`end`=0.5\) before it starts"),
    ],
)
def test_sub_clips_outside_the_video_are_refused(
    processor: PllavaProcessor, clips: list[Path], bounds: dict[str, float], message: str
) -> None:
    """Bounds in milliseconds would otherwise go unnoticed. The error names the clip, its duration and the bounds."""
    with pytest.raises(VideoDecodeError, match=f"^Cannot take frames of .*{clips[0].name}: .*{message}"):
        processor.video_processor({"path": str(clips[0]), **bounds})
    metadata = VideoMetadata(total_num_frames=20, fps=10.0)
    with pytest.raises(VideoDecodeError, match=message):
        processor.video_processor.sample_frames(metadata, **bounds)


def test_fps_is_limited(processor: PllavaProcessor, clips: list[Path]) -> None:
    with pytest.raises(VideoDecodeError, match="lower it"):
        processor.video_processor(clips[0], fps=1e9)


def test_short_decoded_videos_are_not_sampled(processor: PllavaProcessor, decoded: np.ndarray) -> None:
    for count in (1, 3, 4):
        assert taken(processor, decoded[:count]) == list(range(count))
    assert taken(processor, decoded[:6]) == [0, 1, 2, 4]
    assert taken(processor, decoded, do_sample_frames=False) == list(range(20))


def test_single_frame_is_a_video(processor: PllavaProcessor, tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.mp4", moving_frames(1), fps=10)
    assert taken(processor, one) == [0] * 4


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_frames_are_cropped_to_the_central_square(processor: PllavaProcessor) -> None:
    """As in CLIP and in the original, the shorter side is resized and the longer one is cropped."""
    video = np.zeros((4, 96, 128, 3), np.uint8)
    video[:, :, :15], video[:, :, -15:] = 255, 255  # is cropped, except for a pixel that the resize blurs
    pixels = processor.video_processor(video, return_tensors="pt")["pixel_values_videos"][0]
    statistics = processor.video_processor.image_mean, processor.video_processor.image_std
    black = torch.tensor([-mean / std for mean, std in zip(*statistics, strict=True)])
    torch.testing.assert_close(pixels[..., 2:-2], black.view(3, 1, 1).expand(4, 3, 48, 44))
    squashed = processor.video_processor(
        video, size={"height": 48, "width": 48}, crop_size={"height": 48, "width": 48}, return_tensors="pt"
    )
    assert squashed["pixel_values_videos"][0, ..., 0].mean() > 1


def test_decoded_frames_may_be_large_but_not_thin(processor: PllavaProcessor) -> None:
    """Decoded frames are in memory already, but a thin one would become huge when its shorter side is resized."""
    large = np.broadcast_to(np.uint8(7), (1, 10_000, 6_000, 3))  # inference engines pass such frames to measure memory
    assert frames_of(processor, large, [0]).shape == (1, 1, 3, 48, 48)
    with pytest.raises(VideoDecodeError, match="more than 32 times the other"):
        frames_of(processor, np.zeros((1, 2, 100, 3), np.uint8), [0])


def test_image_gives_the_pixels_of_a_one_frame_video(processor: PllavaProcessor) -> None:
    frame = moving_frames(1, height=90, width=120)
    image = processor.image_processor(Image.fromarray(frame[0]), return_tensors="pt")["pixel_values"]
    video = processor.video_processor(frame, return_tensors="pt")["pixel_values_videos"]
    assert video.shape == (1, 1, 3, 48, 48)
    torch.testing.assert_close(video[0], image)


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ({"shortest_edge": 48}, (48, 48)),
        ({"height": 48, "width": 64}, (48, 64)),
        (48, (48, 48)),
        (None, (336, 336)),
    ],
)
def test_size_sets_the_crop_size(size: Any, crop: tuple[int, int]) -> None:
    processor = PllavaVideoProcessor(size=size)
    assert (processor.crop_size["height"], processor.crop_size["width"]) == crop
    assert PllavaVideoProcessor(**processor.to_dict()).to_dict() == processor.to_dict()


def test_call_options_override_the_processor(processor: PllavaProcessor, clips: list[Path]) -> None:
    video_processor = processor.video_processor
    assert taken(processor, clips[0], num_frames=2) == [4, 14]
    assert len(set(map(tuple, (taken(processor, clips[2], sampling="random") for _ in range(5))))) > 1
    whole = video_processor(clips[0], do_sample_frames=False, return_tensors="np")["pixel_values_videos"]
    assert isinstance(whole, np.ndarray) and whole.shape == (1, 20, 3, 48, 48)
    lists = video_processor(clips[0])["pixel_values_videos"]
    assert isinstance(lists, list) and lists[0].shape == (4, 3, 48, 48)
    assert "video_metadata" not in video_processor(clips[0])
    metadata = video_processor(clips[0], return_metadata=True)["video_metadata"][0]
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (20, 10.0, 2.0)
    raw = video_processor(clips[0], do_normalize=False, do_rescale=False, return_tensors="pt")["pixel_values_videos"]
    assert raw.max() > 200


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
)
def test_frames_normalised_later_equal_those_of_one_call(clips: list[Path], options: dict) -> None:
    processor = PllavaVideoProcessor(size=48, num_frames=4, **options)
    frames = processor(clips[0], return_tensors="pt", **UNNORMALIZED)["pixel_values_videos"]
    assert frames.dtype == torch.uint8
    pixels = processor(clips[0], return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(processor.normalize_frames(frames), pixels)
    assert torch.equal(processor.normalize_frames(frames[0]), pixels[0])


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_input_data_format_may_be_passed(processor: PllavaProcessor, decoded: np.ndarray, layout: str) -> None:
    video = decoded if layout == "channels_last" else decoded.transpose(0, 3, 1, 2)
    pixels = processor.video_processor(video, input_data_format=layout, return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(pixels, frames_of(processor, decoded, MIDDLES[20]))


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("video", "options", "message"),
    [
        ("nowhere.mp4", {}, "nowhere.mp4.*no such file"),
        (b"not a video", {}, "finds no video"),
        ({"start": 1.0}, {}, '"path", "url", "bytes" or "video"; got the keys .*start'),
        (np.zeros((4, 48, 48)), {}, "shape"),
        (np.zeros((0, 48, 48, 3)), {}, "at least one frame"),
        ([Image.new("RGB", (48, 48)), Image.new("RGB", (64, 48))], {}, "one size"),
        (np.zeros((4, 16384, 2, 3), np.uint8), {}, "2 x 16384, one side is more than 32 times the other"),
        ({"video": np.zeros((9, 48, 48, 3), np.uint8), "start": 1.0}, {}, "frame rate"),
        ({"video": np.zeros((9, 48, 48, 3), np.uint8), "start": 2.0, "end": 1.0}, {}, "ends .* before it starts"),
        ({"video": np.zeros((9, 48, 48, 3), np.uint8), "end": 1.0}, {"do_sample_frames": False}, "do_sample_frames"),
        (np.zeros((9, 48, 48, 3), np.uint8), {"fps": 2}, "frame rate"),
        (np.zeros((9, 48, 48, 3), np.uint8), {"fps": 2, "num_frames": 4}, "not both"),
        (np.zeros((9, 48, 48, 3), np.uint8), {"video_metadata": [{}, {}]}, "1 videos, but `video_metadata` for 2"),
    ],
)
def test_bad_videos_are_refused(processor: PllavaProcessor, video: Any, options: dict, message: str) -> None:
    options = {"video_metadata": [{"fps": 1.0}], **options} if "ends" in message else options
    with pytest.raises(ValueError, match=message):
        processor.video_processor(video, **options)
