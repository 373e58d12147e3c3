"""What vLLM's Transformers backend calls, called as it does, without vLLM: tests/serving runs the engine itself."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import moving_frames, write_video

from pllava import NANO, PllavaConfig, PllavaForConditionalGeneration, PllavaModel, PllavaProcessor
from pllava.model_pooling import choose_pooling, set_pooling

POOLINGS = [
    "average-4x3x3",
    "average-4x5x5",
    "average-2x2x3",
    "average-1x1x1",
    "average-3x4x5",
    "slowfast-2x5x3+4x2x2",
    "merge-2x3x3",
]
LOOKS_SPECIAL = "What are <video>, <image>, </s>, <s> and <|im_end|>?"


@pytest.fixture(scope="module", params=POOLINGS)
def engine(request, model, processor) -> tuple[PllavaForConditionalGeneration, PllavaProcessor]:
    """A model and a processor with this pooling; with the last ones, images are in full."""
    model, processor = copy.deepcopy(model), copy.deepcopy(processor)
    set_pooling(model, processor, choose_pooling(model.config, request.param))
    if not request.param.startswith("average"):
        full = [1, *[model.config.patch_grid] * 2]
        model.config.image_pooling_shape = processor.image_pooling_shape = full
    return model, processor


def test_backend_accepts_the_model(model: PllavaForConditionalGeneration) -> None:
    for cls in (PllavaModel, PllavaForConditionalGeneration):
        assert cls.is_backend_compatible() and cls._can_set_attn_implementation()
    assert model.model.language_model is model.get_decoder()  # where LoRA is applied
    assert PllavaConfig.from_pretrained(NANO).auto_map["AutoModel"] == "modeling_pllava.PllavaModel"
    for modality in ("image", "video"):
        assert model.get_encoder(modality=modality) is model.model.vision_tower


@pytest.mark.parametrize("seed", range(10))
def test_counts_expansions_and_features_agree(
    engine: tuple[PllavaForConditionalGeneration, PllavaProcessor], seed: int
) -> None:
    """50 random prompts: videos and images of any size and number, in any order."""
    model, processor = engine
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(["video"] * rng.integers(0, 4) + ["image"] * rng.integers(0, 4) or ["video"]).tolist()
    videos = [pixels(rng, int(rng.integers(1, 33))) for kind in kinds if kind == "video"]
    images = [Image.fromarray(pixels(rng, 1)[0]) for kind in kinds if kind == "image"]
    shapes = processor.pooling_shape if processor.pooling == "slowfast" else [processor.pooling_shape]
    tokens = {"video": sum(map(math.prod, shapes))}
    full = processor.image_pooling_shape
    tokens["image"] = tokens["video"] if full is None else math.prod(full)

    # Memory is planned by these counts
    counts = processor._get_num_multimodal_tokens(
        image_sizes=[(image.height, image.width) for image in images],
        video_sizes=[video.shape[:3] for video in videos],
    )
    assert counts["num_video_tokens"] == [tokens["video"]] * len(videos)
    assert counts["num_image_tokens"] == [tokens["image"]] * len(images)
    assert counts["num_image_patches"] == [1] * len(images)

    # The media are processed with a text of bare placeholders, and the replacements are read off the offsets
    placeholders = {"video": processor.video_token, "image": processor.image_token}
    text = processor.image_token * len(images) + processor.video_token * len(videos)
    metadata = [whole_file(len(video)) for video in videos]
    media = {"images": images or None, "videos": videos or None, "video_metadata": metadata or None}
    options = {"do_sample_frames": True} if videos else {}
    inputs = processor(text=text, **media, **options, return_text_replacement_offsets=True, return_tensors="pt")
    (offsets,) = inputs["text_replacement_offsets"]
    assert [each["type"] for each in offsets] == ["image"] * len(images) + ["video"] * len(videos)
    for each in offsets:
        ids = torch.tensor(processor.tokenizer.encode(each["replacement"], add_special_tokens=False))
        assert ids.tolist() == [getattr(processor, f"{each['type']}_token_id")] * tokens[each["type"]]
        assert ids.mode().values == ids[0]  # the one that the embeddings go to

    # The prompt is rendered and encoded by the tokenizer alone, then the placeholders in it are replaced
    parts = [{"type": kind} for kind in kinds] + [{"type": "text", "text": LOOKS_SPECIAL}]
    prompt = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], chat_template=processor.chat_template, tokenize=False
    )
    ids = processor.tokenizer.encode(prompt, add_special_tokens=False)
    special = [token for token in ids if token in (processor.video_token_id, processor.image_token_id)]
    assert special == [getattr(processor, f"{kind}_token_id") for kind in kinds]
    assert processor.tokenizer.eos_token_id not in ids
    expanded, (found,) = processor.get_text_with_replacements(
        ["".join(placeholders[kind] for kind in kinds)],
        [processor.replace_image_token(inputs, index) for index in range(len(images))],
        [processor.replace_video_token(inputs, index) for index in range(len(videos))],
    )
    assert [each["type"] for each in found] == kinds
    assert expanded == ["".join(placeholders[kind] * tokens[kind] for kind in kinds)]

    # One row of the fields for each medium, alone or in a batch, gives its tokens
    for kind, field in (("video", "pixel_values_videos"), ("image", "pixel_values")):
        rows = inputs.get(field, [])
        assert len(rows) == kinds.count(kind)
        for batch in [rows, *(row[None] for row in rows)] if len(rows) else ():
            with torch.no_grad():
                output = getattr(model.model, f"get_{kind}_features")(batch, return_dict=True)
            assert output.pooler_output.shape == (len(batch), tokens[kind], model.config.text_config.hidden_size)
    assert set(inputs) & set(processor.video_processor.model_input_names) == (
        {"pixel_values_videos"} if videos else set()
    )


def pixels(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Random frames of a random size, `(frames, height, width, 3)`."""
    height, width = rng.integers(20, 120, 2)
    return rng.integers(256, size=(frames, height, width, 3), dtype=np.uint8)


# --- frames that a reader took ---------------------------------------------------------------------------------------


def whole_file(count: int, **changes) -> dict:
    """vLLM's metadata of a file of which it read all frames."""
    known = {"total_num_frames": count, "fps": 10.0, "duration": count / 10, "video_backend": "opencv"}
    return {**known, "frames_indices": list(range(count)), **changes}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 31, 32])
def test_all_frames_of_a_file_are_sampled_as_the_file(processor: PllavaProcessor, tmp_path, count: int) -> None:
    """Also those of a file with fewer frames than are sampled, of which some are repeated."""
    clip = write_video(tmp_path / "clip.mp4", moving_frames(count), fps=10)
    frames = processor.video_processor(clip, do_sample_frames=False, do_resize=False, return_metadata=True)
    decoded = moving_frames(count)
    options = {"return_metadata": True, "num_frames": 4}
    expected = processor.video_processor(clip, **options)["video_metadata"][0].frames_indices
    read = processor.video_processor(decoded, video_metadata=whole_file(count), do_sample_frames=True, **options)
    assert list(read["video_metadata"][0].frames_indices) == list(expected)
    assert len(read["pixel_values_videos"][0]) == 4 and frames["video_metadata"][0].total_num_frames == count
    alone = processor.video_processor(decoded, **options)  # without metadata, frames are the caller's choice
    assert len(alone["pixel_values_videos"][0]) == min(count, 4)


def test_frames_that_another_reader_chose_give_a_warning(processor: PllavaProcessor) -> None:
    taken = whole_file(150, frames_indices=list(range(0, 150, 5)))
    frames = moving_frames(30)
    with pytest.warns(UserWarning, match="'opencv' took 30 of 150 frames") as caught:
        processor.video_processor(frames, video_metadata=[taken], do_sample_frames=False)
    assert '{"video": {"num_frames": -1}}' in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metadata in (
            None,  # frames of a caller who says nothing about them
            {"total_num_frames": 30, "fps": 10.0},
            whole_file(30),  # as vLLM plans its memory
            {**taken, "video_backend": "pyav"},  # of PLLaVA's own reader
        ):
            processor.video_processor(frames, video_metadata=metadata and [metadata], do_sample_frames=False)


def test_number_of_frames_that_comes_too_late_is_refused(processor: PllavaProcessor) -> None:
    taken = {**whole_file(150, frames_indices=list(range(0, 150, 5))), "video_backend": "pyav"}
    options = {"videos": moving_frames(30), "video_metadata": [taken], "do_sample_frames": False}
    with pytest.raises(ValueError, match=r"`num_frames`=8 is not possible: .* took 30 of 150 frames.*media_io_kwargs"):
        processor.video_processor(num_frames=8, **options)
    assert len(processor.video_processor(num_frames=30, **options)["pixel_values_videos"][0]) == 30
