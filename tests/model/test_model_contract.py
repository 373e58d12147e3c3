"""What transformers expects of a model: outputs, arguments, loading, generation, training."""

import copy
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import Family, hidden_state
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, DynamicCache
from transformers.generation import utils as generation
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pllava import (
    PllavaConfig,
    PllavaForConditionalGeneration,
    PllavaModel,
    PllavaProcessor,
    lora_config,
    modeling_pllava,
)

VIDEO_TOKENS = 36  # 4 x 3 x 3
# Older versions of transformers pass no media to a chunked prefill
CHUNKED_PREFILL = pytest.mark.skipif(
    not hasattr(generation, "_slice_mm_encoder_output"),
    reason="transformers does not split encoded media",
)


@pytest.fixture(scope="module")
def inputs(processor: PllavaProcessor, pixels: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    """One row with a video and an image."""
    text = (
        f"USER:{processor.video_token * VIDEO_TOKENS}{processor.image_token * VIDEO_TOKENS} What happens? ASSISTANT:"
    )
    return {
        **processor.tokenizer(text, return_tensors="pt"),
        "pixel_values_videos": pixels(1),
        "pixel_values": pixels(1, frames=1, seed=1)[0],
    }


@pytest.fixture
def trainable(model: PllavaForConditionalGeneration) -> PllavaForConditionalGeneration:
    return copy.deepcopy(model).train()


# --- outputs and arguments -------------------------------------------------------------------------------------------


def test_training_mode_gives_all_logits(
    trainable: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    vocabulary = trainable.config.text_config.vocab_size
    assert trainable(**inputs, labels=labels).logits.shape == (*inputs["input_ids"].shape, vocabulary)


def test_logits_to_keep_takes_a_number_or_positions(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        logits = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, logits[:, -2:])
        positions = torch.tensor([0, 5, 7])
        torch.testing.assert_close(model(**inputs, logits_to_keep=positions).logits, logits[:, positions])


@pytest.mark.parametrize("modality", ["image", "video"])
def test_feature_outputs_follow_their_options(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], modality: str
) -> None:
    pixels = inputs["pixel_values" if modality == "image" else "pixel_values_videos"]
    patches, has_cls = model.config.patch_grid**2, model.config.vision_config.model_type == "clip_vision_model"
    for owner in (model, model.model):
        get_features = getattr(owner, f"get_{modality}_features")
        output = get_features(pixels, output_hidden_states=True)
        frames = 1 if modality == "image" else 4
        assert output.pooler_output.shape == (1, VIDEO_TOKENS, 32)
        assert output.last_hidden_state.shape == (frames, patches, 32)
        states = 1 + model.config.num_vision_layers
        assert [state.shape for state in output.hidden_states] == [(frames, patches + has_cls, 32)] * states
        assert get_features(pixels).hidden_states is None
        in_tuple = get_features(pixels, return_dict=False)
        assert isinstance(in_tuple, tuple)
        torch.testing.assert_close(in_tuple[1], output.pooler_output)


@pytest.mark.parametrize("name", ["vision_feature_layer", "vision_feature_select_strategy"])
def test_other_tower_options_than_the_configs_are_refused(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], family: Family, name: str
) -> None:
    own = family.reading
    option = {
        name: next(
            value for value in (-1, -2, "full", "default") if type(value) is type(own[name]) and value != own[name]
        )
    }
    for call in (
        lambda: model.get_video_features(inputs["pixel_values_videos"], **option),
        lambda: model.get_image_features(inputs["pixel_values"], **option),
        lambda: model(**inputs, **option),
    ):
        with pytest.raises(ValueError, match=f"built for another {name}"):
            call()
    assert model(**inputs, **own).logits.isfinite().all()


def test_changing_the_vision_layer_of_a_built_model_is_refused(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    changed = copy.deepcopy(model)
    changed.config.vision_feature_layer = 1
    with pytest.raises(ValueError, match="built for another vision_feature_layer"):
        changed(**inputs)


def test_outputs_include_the_pooled_tokens(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        for output in (model(**inputs), model.model(**inputs)):
            expected = model.get_video_features(inputs["pixel_values_videos"]).pooler_output
            torch.testing.assert_close(output.video_hidden_states, expected)
            assert output.image_hidden_states.shape == (1, VIDEO_TOKENS, 32)
        text_only = model(input_ids=torch.tensor([[5, 6, 7]]))
    assert text_only.video_hidden_states is None and text_only.image_hidden_states is None


def test_tuples_and_outputs_agree(model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> None:
    options = {"use_cache": False, "output_hidden_states": True}
    with torch.no_grad():
        for part in (model, model.model):
            output, in_tuple = part(**inputs, **options), part(**inputs, **options, return_dict=False)
            for expected, value in zip(output.to_tuple(), in_tuple, strict=True):
                torch.testing.assert_close(value, expected)


def test_pixels_and_encoded_media_exclude_each_other(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    encoded = {"video": model.get_video_features(inputs["pixel_values_videos"])}
    with pytest.raises(ValueError, match=r"either pixels or `mm_encoder_outputs` .* got \['video'\]"):
        model(**inputs, mm_encoder_outputs=encoded)
    image_only = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    with torch.no_grad():
        logits = model(**image_only, mm_encoder_outputs={**encoded, "image": None}).logits
        torch.testing.assert_close(logits, model(**inputs).logits)
    with pytest.raises(ValueError, match=r"got \['videos'\]"):
        model(**image_only, mm_encoder_outputs={"videos": encoded["video"]})


def test_a_text_model_that_returns_tuples(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    plain = copy.deepcopy(model)
    plain.config.text_config.return_dict = False
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("shape", [(4, 3, 48, 48), (1, 4, 36, 32), (3, 48, 48)])
def test_pixels_of_a_wrong_shape_are_refused(model: PllavaForConditionalGeneration, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(frames, 3, height, width\)"):
        model.get_video_features(torch.zeros(shape))


def test_an_image_without_a_batch_is_refused(model: PllavaForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match=r"must be \(frames, 3, height, width\)"):
        model.get_image_features(torch.zeros(3, 48, 48))


def test_generation_validates_the_arguments_of_forward(model: PllavaForConditionalGeneration) -> None:
    named = list(inspect.signature(model.forward).parameters)
    assert named[0] == "input_ids"
    assert {"pixel_values", "pixel_values_videos", "attention_mask", "position_ids", "inputs_embeds"} <= set(named)
    with pytest.raises(ValueError, match="pixel_value_videos"):
        model.generate(input_ids=torch.tensor([[5]]), pixel_value_videos=torch.zeros(1), max_new_tokens=1)


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [-99, -4, 0, 4, 99])
def test_a_vision_feature_layer_that_does_not_exist_is_refused(
    config: PllavaConfig, checkpoint: str, layer: int
) -> None:
    with pytest.raises(ValueError, match="from 1 to 3 or from -3 to -1"):
        PllavaConfig(**{**config.to_dict(), "vision_feature_layer": layer})
    with pytest.raises(ValueError, match="from 1 to 3 or from -3 to -1"):
        PllavaForConditionalGeneration.from_pretrained(checkpoint, vision_feature_layer=layer)


@pytest.mark.parametrize("layer", [1, -1, -3])
def test_any_vision_layer_can_be_read(config: PllavaConfig, inputs: dict[str, torch.Tensor], layer: int) -> None:
    config = copy.deepcopy(config)
    config.vision_feature_layer = layer
    model = PllavaModel(config).eval()
    full = AutoModel.from_config(config.vision_config).eval()
    full.load_state_dict(model.vision_tower.state_dict(), strict=False)
    with torch.no_grad():
        expected = hidden_state(full, inputs["pixel_values"], layer)
        torch.testing.assert_close(model.encode_frames(inputs["pixel_values"]).last_hidden_state, expected)


@pytest.fixture
def changed_checkpoint(checkpoint: str, tmp_path: Path):
    """Return a function that writes the checkpoint with its weights changed and returns its path."""

    def write(change) -> str:
        weights = load_file(f"{checkpoint}/model.safetensors")
        change(weights)
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return str(tmp_path)

    return write


def test_only_vision_layers_above_the_one_that_is_read_are_ignored(changed_checkpoint, config: PllavaConfig) -> None:
    def add(weights: dict[str, torch.Tensor], old: str, new: str) -> None:
        weights |= {name.replace(old, new): weight.clone() for name, weight in weights.items() if old in name}

    def add_above(weights: dict[str, torch.Tensor]) -> None:
        for layer in range(config.num_vision_layers, 3):
            add(weights, "tower.encoder.layers.0.", f"tower.encoder.layers.{layer}.")

    path = changed_checkpoint(add_above)
    model = PllavaForConditionalGeneration.from_pretrained(path)
    (pattern,) = model._keys_to_ignore_on_load_unexpected  # engines drop every weight that it matches
    assert model.model._keys_to_ignore_on_load_unexpected == {pattern}
    dropped = re.compile(pattern)
    for layer in range(3):
        name = f"model.vision_tower.encoder.layers.{layer}.mlp.fc1.weight"
        assert bool(dropped.search(name)) is (layer >= config.num_vision_layers)
    assert not any(dropped.search(name) for name in [*model.state_dict(), "lm_head.weight"])
    assert PllavaModel.from_pretrained(path).config.num_vision_layers == config.num_vision_layers

    for stray in ("tower.encoder.layers.3.", "tower.encoder.layers.12."):
        path = changed_checkpoint(lambda weights, stray=stray: add(weights, "tower.encoder.layers.1.", stray))
        with pytest.raises(ValueError, match=rf"unexpected keys: .*vision_{stray}"):
            PllavaForConditionalGeneration.from_pretrained(path)


def test_only_the_model_without_a_head_loads_a_checkpoint_without_one(
    changed_checkpoint, config: PllavaConfig
) -> None:
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    path = changed_checkpoint(lambda weights: weights.pop(next(name for name in weights if name.endswith(head))))
    with pytest.raises(ValueError, match=f"missing keys.*{head}"):
        PllavaForConditionalGeneration.from_pretrained(path)
    if not config.tie_word_embeddings:
        PllavaModel.from_pretrained(path)


def test_a_saved_and_loaded_model_gives_equal_outputs(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    for part in (model, model.model):
        part.save_pretrained(tmp_path / type(part).__name__)
        loaded, info = type(part).from_pretrained(tmp_path / type(part).__name__, output_loading_info=True)
        assert not any(info.values())
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs)[0], part(**inputs)[0], rtol=0, atol=0)


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"prefill_chunk_size": 16}, marks=CHUNKED_PREFILL),
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"output_scores": True, "return_dict_in_generate": True, "output_hidden_states": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_ways_to_generate_agree(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], options: dict
) -> None:
    plain = {"max_new_tokens": 5, "do_sample": False}
    output = model.generate(**inputs, **plain, **options)
    sequences = output.sequences if "return_dict_in_generate" in options else output
    assert sequences.tolist() == model.generate(**inputs, **plain).tolist()


def test_generation_continues_from_a_kv_cache(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    """The second turn of a conversation uses the first one's cache, without the video."""
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    first = model.generate(**inputs, **options)
    second = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    whole = model.generate(**{**inputs, "input_ids": second, "attention_mask": torch.ones_like(second)}, **options)
    cache = first.past_key_values
    assert isinstance(cache, DynamicCache)
    continued = model.generate(input_ids=second, past_key_values=cache, **options)
    assert continued.sequences.tolist() == whole.sequences.tolist()


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_a_text_only_batch_gives_each_trained_weight_a_gradient(
    trainable: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], frozen: bool
) -> None:
    """Otherwise processes with videos in their batch would wait forever."""
    trainable.model.vision_tower.requires_grad_(not frozen)

    def with_gradient(**batch: torch.Tensor) -> set[str]:
        trainable.zero_grad()
        trainable(**batch, labels=batch["input_ids"]).loss.backward()
        return {name for name, weight in trainable.named_parameters() if weight.grad is not None}

    text = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    assert with_gradient(**text) == with_gradient(**inputs)
    with_gradient(**text)
    media = [*trainable.model.vision_tower.parameters(), *trainable.model.multi_modal_projector.parameters()]
    assert not any(weight.grad.any() for weight in media if weight.grad is not None)


def test_the_blank_image_does_not_change_a_text_only_batch(trainable: PllavaForConditionalGeneration) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(
            trainable(input_ids=ids).logits, copy.deepcopy(trainable).eval()(input_ids=ids).logits
        )


@pytest.mark.parametrize("sharded", [False, True], ids=["", "ZeRO-3"])
def test_processes_run_the_same_layers_whatever_their_batch(
    trainable: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], monkeypatch, sharded: bool
) -> None:
    """ZeRO-3 gathers each layer's weights from all processes: an additional call would wait forever."""
    monkeypatch.setattr(modeling_pllava, "is_deepspeed_zero3_enabled", lambda: sharded)
    calls = Counter()
    for name in ("vision_tower", "multi_modal_projector"):
        module = getattr(trainable.model, name)
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    text = {"input_ids": torch.tensor([[5, 6, 7]])}
    ids = torch.full((1, VIDEO_TOKENS), trainable.config.video_token_id)
    video = {"input_ids": ids, "pixel_values_videos": inputs["pixel_values_videos"]}
    for batch in (text, video, inputs):
        trainable(**batch)
    assert calls == {"vision_tower": 3, "multi_modal_projector": 3 if sharded else 4}
    trainable.eval()(**text)
    assert calls["vision_tower"] == (4 if sharded else 3)


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "PEFT"])
def test_a_float32_projector_in_a_bfloat16_model(
    model: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor], wrapped: bool
) -> None:
    """A trained projector is in float32; PEFT keeps the original, too."""
    mixed = copy.deepcopy(model).to(torch.bfloat16)
    if wrapped:
        mixed = get_peft_model(mixed, lora_config(r=4))
        for weight in mixed.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    else:
        mixed.model.multi_modal_projector.float()
    mixed.eval()
    with torch.no_grad():
        output = mixed(**inputs)
        expected = model(**inputs).logits
    assert output.logits.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(output.logits.float(), expected, dim=-1).min() > 0.99


def test_encoded_media_train_the_projector(
    trainable: PllavaForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    """As with cached features of the frozen tower."""
    trainable.model.vision_tower.requires_grad_(False)

    def gradients(**batch) -> dict[str, torch.Tensor]:
        trainable.zero_grad()
        trainable(**batch, labels=batch["input_ids"]).loss.backward()
        return {name: weight.grad.clone() for name, weight in trainable.named_parameters() if weight.grad is not None}

    expected = gradients(**inputs)
    text = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    features = trainable.model.encode_frames(inputs["pixel_values_videos"][0]).last_hidden_state
    pooled = BaseModelOutputWithPooling(pooler_output=torch.stack(trainable.model.pool([features])))
    torch.testing.assert_close(gradients(**text, mm_encoder_outputs={"video": pooled}), expected)
