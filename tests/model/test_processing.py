"""The processor: chats, masks, placeholders, saving, and errors."""

import base64
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor
from video_files import moving_frames, white_png

from pllava import PllavaForConditionalGeneration, PllavaProcessor, PllavaVideoProcessor
from pllava.video_source_pllava import VideoDecodeError

VIDEO_TOKENS = 36  # 4 x 3 x 3
MIDDLES = [2, 7, 12, 16]  # of four intervals of a clip of 20 frames


def side(processor: PllavaProcessor) -> int:
    """Height, and width, of its pixels."""
    return processor.video_processor.crop_size["height"]


# --- chats -----------------------------------------------------------------------------------------------------------


def chat_about(*media: dict) -> list[dict]:
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What happens?"}, *media]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red circle moves."}]},
        {"role": "user", "content": "How often does it bounce?"},
        {"role": "assistant", "content": "twice"},
    ]


def test_chat_template_formats_a_conversation(processor: PllavaProcessor) -> None:
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


def test_assistant_mask_covers_answers_and_end_tokens(processor: PllavaProcessor, clips: list[Path]) -> None:
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


def test_chat_options_reach_the_video_processor(processor: PllavaProcessor, clips: list[Path]) -> None:
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

    part, size = {"type": "video", "path": str(clips[0])}, side(processor)
    assert indices(part) == MIDDLES
    assert indices(part, num_frames=2) == [4, 14]
    assert indices(part, fps=2) == [2, 8, 12, 18]
    assert indices(part, do_sample_frames=False) == list(range(20))
    assert indices({**part, "start": 0.5, "end": 1.2}) == [5, 7, 9, 10]
    assert indices({"type": "video", "url": str(clips[0]), "start": 1.0}) == [11, 13, 15, 18]
    assert indices({"type": "video", "video": {"path": str(clips[0]), "end": 0.3}}) == [0, 1, 2, 2]
    assert indices({"type": "video", "bytes": clips[0].read_bytes()}) == MIDDLES
    for return_tensors, kind in (("pt", torch.Tensor), ("np", np.ndarray), (None, list)):
        outputs = encode(part, return_tensors)
        assert all(isinstance(outputs[key], kind) for key in ("input_ids", "attention_mask", "pixel_values_videos"))
        assert np.shape(outputs["pixel_values_videos"][0]) == (4, 3, size, size)
    assert encode(part, num_frames=32)["input_ids"].tolist() == encode(part)["input_ids"].tolist()


def image_of(processor: PllavaProcessor, **part) -> torch.Tensor:
    chat = [{"role": "user", "content": [{"type": "image", **part}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(chat, **options)["pixel_values"]


def test_chat_image_may_have_any_form(processor: PllavaProcessor, tmp_path: Path) -> None:
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
def test_chat_images_have_limits_and_clear_errors(processor: PllavaProcessor, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "drawing.eps":
        Image.new("RGB", (48, 48)).save(file)
    elif name != "none.png":
        file.write_bytes(white_png(*((9000, 9000) if name == "large.png" else (20000, 1))))
    with pytest.raises(VideoDecodeError, match=f"^Cannot decode {file}: .* Give a whole image file"):
        image_of(processor, path=str(file))


def test_call_does_not_change_the_chat(processor: PllavaProcessor, clips: list[Path]) -> None:
    part = {"type": "video", "path": str(clips[0]), "start": 0.5}
    chat = [{"role": "user", "content": [part]}]
    processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert chat == [{"role": "user", "content": [{"type": "video", "path": str(clips[0]), "start": 0.5}]}]


# --- other uses ------------------------------------------------------------------------------------------------------


def test_model_takes_videos_of_different_lengths(
    processor: PllavaProcessor, model: PllavaForConditionalGeneration, clips: list[Path]
) -> None:
    text = [f"{processor.video_token} What happens?"] * 2
    both = processor(text=text, videos=clips[:2], fps=5, padding=True, return_tensors="pt")
    size = side(processor)
    assert [tuple(video.shape) for video in both["pixel_values_videos"]] == [(n, 3, size, size) for n in (10, 15)]
    both = both.to("cpu", torch.float32)
    with torch.no_grad():
        logits = model(**both).logits
        for row in range(2):
            alone = processor(text=text[0], videos=clips[row], fps=5, return_tensors="pt")
            assert alone["pixel_values_videos"].shape[:2] == (1, 10 + 5 * row)
            torch.testing.assert_close(model(**alone).logits[0], logits[row], rtol=0, atol=1e-4)
    assert model.generate(**both, max_new_tokens=2).shape[1] == both["input_ids"].shape[1] + 2


def test_token_counts_for_inference_engines(processor: PllavaProcessor) -> None:
    counts = processor._get_num_multimodal_tokens(image_sizes=[(48, 48)] * 2, video_sizes=[(4, 48, 48)])
    assert counts["num_image_tokens"] == [VIDEO_TOKENS] * 2 and counts["num_video_tokens"] == [VIDEO_TOKENS]
    assert processor.num_frames == 4 and processor.num_video_tokens == VIDEO_TOKENS
    assert {"input_ids", "pixel_values", "pixel_values_videos"} <= set(processor.model_input_names)


def test_inference_engine_may_pass_sampled_frames(processor: PllavaProcessor) -> None:
    """vLLM decodes 32 frames of a longer clip, and passes them with the clip's metadata, beside images."""
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
    assert outputs["pixel_values_videos"].shape[:3] == (1, 32, 3) and outputs["pixel_values"].shape[0] == 1
    expansions = [(each["type"], each["replacement"]) for each in outputs["text_replacement_offsets"][0]]
    kinds = {"image": processor.image_token, "video": processor.video_token}
    assert expansions == [(kind, token * VIDEO_TOKENS) for kind, token in kinds.items()]
    assert outputs["mm_token_type_ids"][0].tolist() == [1] * VIDEO_TOKENS + [2] * VIDEO_TOKENS


def test_saved_processor_gives_the_same_inputs(processor: PllavaProcessor, clips: list[Path], tmp_path: Path) -> None:
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
def test_numbers_of_placeholders_and_media_must_match(
    processor: PllavaProcessor, text: str | None, videos: int | None, images: int | None, message: str
) -> None:
    given = {
        "videos": videos and [moving_frames(4)] * videos,
        "images": images and [Image.new("RGB", (48, 48))] * images,
    }
    with pytest.raises(ValueError, match=message):
        processor(text=text, **given)


def test_tokenizer_without_placeholders_is_refused(processor: PllavaProcessor) -> None:
    parts = (CLIPImageProcessor(), processor.tokenizer, PllavaVideoProcessor())
    with pytest.raises(ValueError, match="does not know '<clip>'"):
        PllavaProcessor(*parts, video_token="<clip>")


def test_truncation_within_a_video_is_refused(processor: PllavaProcessor, clips: list[Path]) -> None:
    processor = copy.deepcopy(processor)  # because a tokenizer keeps its truncation settings
    with pytest.raises(ValueError, match="video"):
        processor(text=f"{processor.video_token} What?", videos=clips[0], truncation=True, max_length=20)
