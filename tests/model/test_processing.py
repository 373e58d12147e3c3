"""The processor: every kind of video, frame sampling, chats, masks, saving, and clear errors."""

import base64
import copy
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
from transformers import AutoProcessor, CLIPImageProcessor
from transformers.video_utils import VideoMetadata
from video_files import decode_all, moving_frames, white_png, write_video

from pllava import PllavaForConditionalGeneration, PllavaProcessor, PllavaVideoProcessor
from pllava.video_source_pllava import VideoDecodeError

VIDEO_TOKENS = 36  # 4 x 3 x 3
MIDDLES = {20: [2, 7, 12, 16], 30: [3, 10, 17, 25], 40: [4, 14, 24, 33]}  # of four intervals, by length of the clip


def taken(processor: PllavaProcessor, video: Any, **kwargs) -> list[int]:
    """Indices of the frames that are read of one video."""
    return list(processor.video_processor(video, return_metadata=True, **kwargs)["video_metadata"][0].frames_indices)


def frames_of(processor: PllavaProcessor, frames: np.ndarray, indices: list[int]) -> torch.Tensor:
    """What these decoded frames become: `(1, frames, 3, 48, 48)`."""
    return processor.video_processor(frames[indices], do_sample_frames=False, return_tensors="pt")[
        "pixel_values_videos"
    ]


# --- which frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "fps", "num_frames", "clip", "expected"),
    [
        # Recorded from the original's evaluation and demo
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
def test_uniform_frames(
    total: int, fps: float, num_frames: int, clip: tuple[float, float] | None, expected: list[int]
) -> None:
    bounds = dict(zip(("start", "end"), clip, strict=True)) if clip else {}
    metadata = VideoMetadata(total_num_frames=total, fps=fps)
    indices = PllavaVideoProcessor().sample_frames(metadata, num_frames=num_frames, **bounds)
    assert indices.dtype == np.int64 and indices.tolist() == expected


@pytest.mark.parametrize(
    ("total", "video_fps", "fps", "expected"),
    [
        # Recorded from the original's training
        (250, 25.0, 0.5, [25, 75, 125, 175, 225]),
        (301, 29.97, 0.5, [30, 90, 150, 210, 270]),
        (250, 25.0, 1, [12, 38, 62, 88, 112, 138, 162, 188, 212, 238]),
        (10, 25.0, 1, [0]),
        (4, 2.0, 4, [0, 1, 1, 2, 2, 3, 3, 3]),
    ],
)
def test_frames_by_rate(total: int, video_fps: float, fps: float, expected: list[int]) -> None:
    metadata = VideoMetadata(total_num_frames=total, fps=video_fps)
    assert PllavaVideoProcessor().sample_frames(metadata, fps=fps).tolist() == expected


@pytest.mark.parametrize(("total", "first", "last"), [(20, 0, 19), (21, 0, 20), (40, 10, 29), (3, 0, 2)])
def test_random_frames_stay_in_their_intervals_and_cover_them(total: int, first: int, last: int) -> None:
    torch.manual_seed(0)
    clip = {} if last == total - 1 else {"start": first / 10, "end": last / 10}
    metadata = VideoMetadata(total_num_frames=total, fps=10.0)
    processor = PllavaVideoProcessor()
    drawn = np.stack([processor.sample_frames(metadata, num_frames=4, sampling="random", **clip) for _ in range(2000)])
    edges = np.linspace(first, last + 1, min(4, last - first + 1) + 1).astype(int)
    for column in range(4):
        # Of a clip of fewer frames, the last one is repeated
        interval = range(edges[column], edges[column + 1]) if column < len(edges) - 1 else [last]
        assert set(drawn[:, column].tolist()) == set(interval)
    assert (np.diff(drawn) >= 0).all()
    torch.manual_seed(0)
    again = processor.sample_frames(metadata, num_frames=4, sampling="random", **clip)
    assert again.tolist() == drawn[0].tolist()


# --- what is a video -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoded(clips: list[Path]) -> np.ndarray:
    """All 20 frames of the first clip."""
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


KINDS = {
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_video_gives_the_same_pixels(
    processor: PllavaProcessor, clips: list[Path], decoded: np.ndarray, folder: Path, url: str, kind: str
) -> None:
    video = KINDS[kind](clips[0], decoded, folder, url)
    expected = frames_of(processor, decoded, MIDDLES[20])
    for videos in (video, [video], [[video], []]):
        outputs = processor.video_processor(videos, return_tensors="pt", return_metadata=True)
        torch.testing.assert_close(outputs["pixel_values_videos"], expected)
        assert list(outputs["video_metadata"][0].frames_indices) == MIDDLES[20]
    text = processor(text=f"{processor.video_token} What happens?", videos=video, return_tensors="pt")
    torch.testing.assert_close(text["pixel_values_videos"], expected)
    assert (text["input_ids"] == processor.video_token_id).sum() == VIDEO_TOKENS


def test_gif(processor: PllavaProcessor, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (48, 48), (10 * number, 0, 0)) for number in range(10)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    pixels = processor.video_processor(tmp_path / "clip.gif", return_tensors="pt")["pixel_values_videos"][0]
    mean, std = processor.video_processor.image_mean[0], processor.video_processor.image_std[0]
    reds = (pixels[:, 0].mean((1, 2)) * std + mean) * 255
    assert (reds / 10).round().tolist() == [1, 3, 5, 8]


def test_mixed_kinds_in_one_call(
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


def test_sub_clips(processor: PllavaProcessor, clips: list[Path], decoded: np.ndarray) -> None:
    """20 frames at 10 a second."""
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
        # Here the original counts backwards, and takes frames from before the segment
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
def test_sub_clips_that_are_not_there_are_refused(
    processor: PllavaProcessor, clips: list[Path], bounds: dict[str, float], message: str
) -> None:
    """Seconds taken for milliseconds would go unnoticed; the error names the clip, its length and the bounds."""
    with pytest.raises(VideoDecodeError, match=f"^Cannot take frames of .*{clips[0].name}: .*{message}"):
        processor.video_processor({"path": str(clips[0]), **bounds})
    metadata = VideoMetadata(total_num_frames=20, fps=10.0)
    with pytest.raises(VideoDecodeError, match=message):
        processor.video_processor.sample_frames(metadata, **bounds)


def test_a_rate_gives_no_end_of_frames(processor: PllavaProcessor, clips: list[Path]) -> None:
    with pytest.raises(VideoDecodeError, match="lower it"):
        processor.video_processor(clips[0], fps=1e9)


def test_decoded_videos_may_be_sampled_already(processor: PllavaProcessor, decoded: np.ndarray) -> None:
    for count in (1, 3, 4):
        assert taken(processor, decoded[:count]) == list(range(count))
    assert taken(processor, decoded[:6]) == [0, 1, 2, 4]
    assert taken(processor, decoded, do_sample_frames=False) == list(range(20))


def test_fps_gives_videos_of_different_lengths_which_the_model_takes(
    processor: PllavaProcessor, model: PllavaForConditionalGeneration, clips: list[Path]
) -> None:
    text = [f"{processor.video_token} What happens?"] * 2
    both = processor(text=text, videos=clips[:2], fps=5, padding=True, return_tensors="pt")
    assert [tuple(video.shape) for video in both["pixel_values_videos"]] == [(10, 3, 48, 48), (15, 3, 48, 48)]
    both = both.to("cpu", torch.float32)
    with torch.no_grad():
        logits = model(**both).logits
        for row in range(2):
            alone = processor(text=text[0], videos=clips[row], fps=5, return_tensors="pt")
            assert alone["pixel_values_videos"].shape[:2] == (1, 10 + 5 * row)
            torch.testing.assert_close(model(**alone).logits[0], logits[row], rtol=0, atol=1e-4)
    assert model.generate(**both, max_new_tokens=2).shape[1] == both["input_ids"].shape[1] + 2


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_the_square_in_the_middle_is_kept(processor: PllavaProcessor) -> None:
    """As CLIP does it, and as the original does: the shorter side is resized, the longer one cut."""
    video = np.zeros((4, 96, 128, 3), np.uint8)
    video[:, :, :15], video[:, :, -15:] = 255, 255  # what is cut off, but for a pixel that the resize smears
    pixels = processor.video_processor(video, return_tensors="pt")["pixel_values_videos"][0]
    black = torch.tensor([-mean / std for mean, std in zip(*statistics(processor), strict=True)])
    torch.testing.assert_close(pixels[..., 2:-2], black.view(3, 1, 1).expand(4, 3, 48, 44))
    squashed = processor.video_processor(
        video, size={"height": 48, "width": 48}, crop_size={"height": 48, "width": 48}, return_tensors="pt"
    )
    assert squashed["pixel_values_videos"][0, ..., 0].mean() > 1


def statistics(processor: PllavaProcessor) -> tuple[list[float], list[float]]:
    return processor.video_processor.image_mean, processor.video_processor.image_std


def test_decoded_frames_may_be_large_but_not_thin(processor: PllavaProcessor) -> None:
    """They are in memory already; a thin frame, resized by its shorter side, would become larger than any limit."""
    large = np.broadcast_to(np.uint8(7), (1, 10_000, 6_000, 3))  # as inference engines ask for, to measure memory
    assert frames_of(processor, large, [0]).shape == (1, 1, 3, 48, 48)
    with pytest.raises(VideoDecodeError, match="more than 32 times the other"):
        frames_of(processor, np.zeros((1, 2, 100, 3), np.uint8), [0])


def test_an_image_gives_the_pixels_of_a_one_frame_video(processor: PllavaProcessor) -> None:
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
def test_a_size_brings_its_crop(size: Any, crop: tuple[int, int]) -> None:
    processor = PllavaVideoProcessor(size=size)
    assert (processor.crop_size["height"], processor.crop_size["width"]) == crop
    assert PllavaVideoProcessor(**processor.to_dict()).to_dict() == processor.to_dict()


def test_options_of_a_call(processor: PllavaProcessor, clips: list[Path]) -> None:
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


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_layouts_may_be_named(processor: PllavaProcessor, decoded: np.ndarray, layout: str) -> None:
    video = decoded if layout == "channels_last" else decoded.transpose(0, 3, 1, 2)
    pixels = processor.video_processor(video, input_data_format=layout, return_tensors="pt")["pixel_values_videos"]
    torch.testing.assert_close(pixels, frames_of(processor, decoded, MIDDLES[20]))


# --- chats -----------------------------------------------------------------------------------------------------------


def chat_about(*media: dict) -> list[dict]:
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What happens?"}, *media]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red circle moves."}]},
        {"role": "user", "content": "How often does it bounce?"},
        {"role": "assistant", "content": "twice"},
    ]


def test_chat_template(processor: PllavaProcessor) -> None:
    chat = chat_about({"type": "video"}, {"type": "image"})
    expected = (
        "Be brief. USER:<video><image> What happens? ASSISTANT:A red circle moves.</s>USER:How often does it bounce? "
        "ASSISTANT:twice</s>"
    )
    assert processor.apply_chat_template(chat) == expected
    asked = processor.apply_chat_template(chat[:-1], add_generation_prompt=True)
    assert asked == expected.removesuffix("twice</s>")
    assert processor.apply_chat_template(chat, continue_final_message=True) == expected.removesuffix("</s>")
    with pytest.raises(Exception, match="roles are system, user and assistant; got 'tool'"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])


def test_the_assistant_mask_marks_its_words_and_end_tokens(processor: PllavaProcessor, clips: list[Path]) -> None:
    image = Image.new("RGB", (48, 48))
    chats = [
        chat_about({"type": "video", "path": str(clips[0])}),
        chat_about({"type": "video", "path": str(clips[1])}, {"type": "image", "image": image}),
        chat_about(),
    ]
    outputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    masks = torch.as_tensor(outputs["assistant_masks"]).bool()
    assert masks.shape == outputs["input_ids"].shape
    for ids, mask in zip(outputs["input_ids"], masks, strict=True):
        starts = (mask.int().diff(prepend=torch.zeros(1)) == 1).sum()
        assert processor.tokenizer.decode(ids[mask]) == "A red circle moves.</s>twice</s>" and starts == 2
    counts = (outputs["input_ids"] == processor.video_token_id).sum(-1)
    assert counts.tolist() == [VIDEO_TOKENS, VIDEO_TOKENS, 0]


def test_options_of_a_chat(processor: PllavaProcessor, clips: list[Path]) -> None:
    def encode(part: dict, return_tensors: str | None = "pt", **kwargs) -> dict:
        return processor.apply_chat_template(
            [{"role": "user", "content": [part, {"type": "text", "text": "What happens?"}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors=return_tensors,
            processor_kwargs={"return_metadata": True, **kwargs},
        )

    def indices(*args, **kwargs) -> list[int]:
        return list(encode(*args, **kwargs)["video_metadata"][0].frames_indices)

    part = {"type": "video", "path": str(clips[0])}
    assert indices(part) == MIDDLES[20]
    assert indices(part, num_frames=2) == [4, 14]
    assert indices(part, fps=2) == [2, 8, 12, 18]
    assert indices(part, do_sample_frames=False) == list(range(20))
    assert indices({**part, "start": 0.5, "end": 1.2}) == [5, 7, 9, 10]
    assert indices({"type": "video", "url": str(clips[0]), "start": 1.0}) == [11, 13, 15, 18]
    assert indices({"type": "video", "video": {"path": str(clips[0]), "end": 0.3}}) == [0, 1, 2, 2]
    assert indices({"type": "video", "bytes": clips[0].read_bytes()}) == MIDDLES[20]
    for return_tensors, kind in (("pt", torch.Tensor), ("np", np.ndarray), (None, list)):
        outputs = encode(part, return_tensors)
        assert all(isinstance(outputs[key], kind) for key in ("input_ids", "attention_mask", "pixel_values_videos"))
        assert np.shape(outputs["pixel_values_videos"][0]) == (4, 3, 48, 48)
    assert encode(part, num_frames=32)["input_ids"].tolist() == encode(part)["input_ids"].tolist()


def image_of(processor: PllavaProcessor, **part) -> torch.Tensor:
    chat = [{"role": "user", "content": [{"type": "image", **part}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(chat, **options)["pixel_values"]


def test_an_image_of_a_chat_may_be_given_in_any_way(processor: PllavaProcessor, tmp_path: Path) -> None:
    image, file = Image.fromarray(moving_frames(1)[0]), tmp_path / "an image.png"
    image.save(file)
    text = base64.b64encode(file.read_bytes()).decode()
    expected = image_of(processor, image=image)
    for key, given in {
        "image": [str(file), file, file.read_bytes(), np.array(image), f"data:image/png;base64,{text}"],
        "url": [file.as_uri()],
        "path": [str(file)],
        "base64": [text],
    }.items():
        for one in given:
            assert torch.equal(image_of(processor, **{key: one}), expected), (key, one)
    beside = processor(images=[[str(file)], [image]], text=["<image>", "<image>"], return_tensors="pt")
    assert torch.equal(beside["pixel_values"], expected.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("name", ["large.png", "thin.png", "drawing.eps", "none.png"])
def test_images_of_a_chat_have_limits_and_the_one_error(processor: PllavaProcessor, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "drawing.eps":
        Image.new("RGB", (48, 48)).save(file)
    elif name != "none.png":
        file.write_bytes(white_png(*((9000, 9000) if name == "large.png" else (20000, 1))))
    with pytest.raises(VideoDecodeError, match=f"^Cannot decode {file}: .* Give a whole image file"):
        image_of(processor, path=str(file))


def test_a_call_leaves_what_it_is_given_as_it_was(processor: PllavaProcessor, clips: list[Path]) -> None:
    part = {"type": "video", "path": str(clips[0]), "start": 0.5}
    chat = [{"role": "user", "content": [part]}]
    processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert chat == [{"role": "user", "content": [{"type": "video", "path": str(clips[0]), "start": 0.5}]}]


# --- as inference engines and trainers use it ------------------------------------------------------------------------


def test_token_counts_for_engines(processor: PllavaProcessor) -> None:
    counts = processor._get_num_multimodal_tokens(image_sizes=[(48, 48)] * 2, video_sizes=[(4, 48, 48)])
    assert counts["num_image_tokens"] == [VIDEO_TOKENS] * 2 and counts["num_video_tokens"] == [VIDEO_TOKENS]
    assert processor.num_frames == 4 and processor.num_visual_tokens == VIDEO_TOKENS
    assert {"input_ids", "pixel_values", "pixel_values_videos"} <= set(processor.model_input_names)


def test_an_engine_samples_the_frames_of_a_long_clip_itself(processor: PllavaProcessor) -> None:
    """vLLM decodes 32 frames of a longer clip, and passes them with what they were taken from, beside images."""
    frames = moving_frames(32)
    metadata = {"total_num_frames": 320, "fps": 25.0, "duration": 12.8, "frames_indices": list(range(0, 320, 10))}
    outputs = processor(
        text=f"{processor.image_token}{processor.video_token}",
        images=[Image.new("RGB", (64, 48))],
        videos=[frames],
        video_metadata=[{**metadata, "video_backend": "opencv"}],
        do_sample_frames=False,
        return_text_replacement_offsets=True,
        return_mm_token_type_ids=True,
        return_tensors="pt",
    )
    assert outputs["pixel_values_videos"].shape == (1, 32, 3, 48, 48) and outputs["pixel_values"].shape[0] == 1
    expansions = [(each["type"], each["replacement"]) for each in outputs["text_replacement_offsets"][0]]
    kinds = {"image": processor.image_token, "video": processor.video_token}
    assert expansions == [(kind, token * VIDEO_TOKENS) for kind, token in kinds.items()]
    assert outputs["mm_token_type_ids"][0].tolist() == [1] * VIDEO_TOKENS + [2] * VIDEO_TOKENS


def test_save_and_load(processor: PllavaProcessor, clips: list[Path], tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is PllavaProcessor and type(loaded.video_processor) is PllavaVideoProcessor
    assert {**loaded.to_dict(), "auto_map": None} == {**processor.to_dict(), "auto_map": None}
    assert loaded.chat_template == processor.chat_template
    inputs = {"text": f"{processor.video_token} What?", "videos": clips[0], "return_tensors": "pt"}
    for key, value in processor(**inputs).items():
        torch.testing.assert_close(loaded(**inputs)[key], value)
    template = "{{ 'Q: ' + messages[0]['content'] }}"
    loaded.chat_template = template
    loaded.save_pretrained(tmp_path / "other")
    assert AutoProcessor.from_pretrained(tmp_path / "other").chat_template == template


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "videos", "images", "message"),
    [
        ("<video>", None, None, "1 <video> placeholders, but 0"),
        ("<video><video>", 1, None, "2 <video> placeholders, but 1"),
        ("hello", 1, None, "0 <video> placeholders, but 1"),
        ("<image>", None, None, "1 <image> placeholders, but 0"),
        ("<image>", None, 2, "1 <image> placeholders, but 2"),
        (None, None, None, "at least one input"),
    ],
)
def test_text_and_media_must_match(
    processor: PllavaProcessor,
    decoded: np.ndarray,
    text: str | None,
    videos: int | None,
    images: int | None,
    message: str,
) -> None:
    given = {"videos": videos and [decoded] * videos, "images": images and [Image.new("RGB", (48, 48))] * images}
    with pytest.raises(ValueError, match=message):
        processor(text=text, **given)


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


def test_a_tokenizer_without_placeholders_is_refused(processor: PllavaProcessor) -> None:
    parts = (CLIPImageProcessor(), processor.tokenizer, PllavaVideoProcessor())
    with pytest.raises(ValueError, match="does not know '<clip>'"):
        PllavaProcessor(*parts, video_token="<clip>")


def test_truncation_through_a_video_is_refused(processor: PllavaProcessor, clips: list[Path]) -> None:
    processor = copy.deepcopy(processor)  # a tokenizer keeps its truncation, and is saved with it
    with pytest.raises(ValueError, match="video"):
        processor(text=f"{processor.video_token} What?", videos=clips[0], truncation=True, max_length=20)


def test_a_single_frame_is_a_video(processor: PllavaProcessor, tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.mp4", moving_frames(1), fps=10)
    assert taken(processor, one) == [0] * 4
