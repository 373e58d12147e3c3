"""Planning a conversion from headers and configs, and checking that it is complete before any weight is read."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from ..adapters import fetch_adapter, lora_config
from ..checkpoint_files import reading_config
from ..configuration_pllava import PllavaConfig
from ..model_pooling import choose_pooling, extended_rope
from ..modeling_pllava import PllavaForConditionalGeneration
from ..pooling_pllava import POOLING_KEYS, AveragePooling
from .reading import Kind, StoredCheckpoint, StoredTensor, directory_with, has_image_processor, read_checkpoint
from .weight_names import EMBEDDINGS, HEAD, UNREAD_VISION_PARTS, VISION_LAYERS, pllava_name

if TYPE_CHECKING:
    from peft import LoraConfig

DEFAULT_ALPHA = 4.0  # in all of the original's evaluation scripts
IMAGE_FRAMES = 16  # per clip, as the paper has it, for a model that was trained on images only
CLIP_KEYS = ("num_frames", *POOLING_KEYS)  # of the training, not of the architecture
# May differ between a base model and what was trained on it
NOT_ARCHITECTURE = {"dtype", "transformers_version", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}


@dataclass
class Plan:
    """
    A conversion that is known to be complete: all weights exist and fit, and none is left over.

    Args:
        checkpoint: The source.
        model: The model's weights: from the source, or from the base of a training output.
        trained: The LoRA, and the projector if it was trained with it.
        config: The config to write; its vocabulary is larger than the source's if the placeholders need new rows.
        meta_model: The model before its vocabulary grows, on the meta device.
        image_settings: How the image processor of the source, or of its vision tower, prepares images.
        notes: What to report: differences from the source, and a changed position embedding.
    """

    checkpoint: StoredCheckpoint
    model: StoredCheckpoint
    trained: StoredCheckpoint
    alpha: float
    keep_adapter: bool
    tokenizer: PreTrainedTokenizerFast
    config: PllavaConfig
    meta_model: PllavaForConditionalGeneration
    image_settings: dict[str, Any]
    notes: list[str]

    def adapter_config(self) -> LoraConfig:
        """Return PEFT's config of the LoRA: the stored one, or one inferred from the weights of the original."""
        if self.trained.kind is Kind.ADAPTER:
            from peft import LoraConfig

            config = LoraConfig.from_pretrained(self.trained.directory)
            config.lora_alpha = self.alpha
            return config
        targets = "|".join(sorted({name.split(".")[-2] for name in self.trained.lora}))
        a, _ = next(iter(self.trained.lora.values()))
        config = lora_config(len(a.meta), self.alpha, targets=targets)
        config.modules_to_save = config.modules_to_save if self.trained.weights else None
        return config


def plan_conversion(
    source: str | os.PathLike,
    base: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    alpha: float | None = None,
    keep_adapter: bool = False,
    revision: str | None = None,
    vision_tower: str | os.PathLike | None = None,
    num_frames: int | None = None,
    pooling: str | None = None,
) -> Plan:
    """Plan a conversion and check it. See [`convert`] for the arguments and the errors raised."""
    source, tower = os.fspath(source), None if vision_tower is None else os.fspath(vision_tower)
    checkpoint = read_checkpoint(source, revision, tower if base is None else None)
    model, trained = _split(checkpoint, source, base, adapter, tower)
    if not trained.lora and (alpha is not None or keep_adapter):
        raise ValueError(f"{source} is {checkpoint.kind.value}: no LoRA, so no alpha to set and no adapter to keep")
    if alpha is None:
        alpha = trained.config.get("lora_alpha", DEFAULT_ALPHA)
    tokenizer, image_settings = _tokenizer(checkpoint, model), _image_settings(checkpoint, model)
    with reading_config(source):
        config = _config(checkpoint, model, tokenizer)
        notes = [*_differences(model, image_settings), *_set_pooling(config, checkpoint.kind, pooling, num_frames)]
        _tie_embeddings(config, model)
        with torch.device("meta"):
            meta_model = PllavaForConditionalGeneration(config)
    plan = Plan(checkpoint, model, trained, alpha, keep_adapter, tokenizer, config, meta_model, image_settings, notes)
    _drop_unread_vision_weights(model, config)
    expected = {pllava_name(name): weight for name, weight in meta_model.state_dict().items()}
    if config.tie_word_embeddings:
        del expected[HEAD]
    if problems := [*_mismatches(model.weights, expected), *_adapter_problems(plan)]:
        raise ValueError("\n".join([f"{source} cannot be converted:", *problems]))
    if max(tokenizer.get_vocab().values()) >= config.text_config.vocab_size:
        config.text_config.vocab_size = -(len(tokenizer) // -64) * 64  # a multiple of 64 makes matrix products fast
    config.text_config.pad_token_id = tokenizer.pad_token_id
    return plan


def _split(
    checkpoint: StoredCheckpoint,
    name: str,
    base: str | os.PathLike | None,
    adapter: str | os.PathLike | None,
    vision_tower: str | None,
) -> tuple[StoredCheckpoint, StoredCheckpoint]:
    """Return the model without its LoRA, and what was trained: the LoRA, and the projector if it is stored apart."""
    if (base is not None) != (checkpoint.kind is Kind.TRAINING):
        origin = checkpoint.config.get("_name_or_path")
        hint = (
            f"pass the image model that was trained (base, --base){f'; its config has {origin!r}' if origin else ''}"
        )
        raise ValueError(f"{name} is {checkpoint.kind.value}: {hint if base is None else 'it takes no base'}")
    if (adapter is not None) != (checkpoint.kind is Kind.PLLAVA):
        hint = "pass the adapter to merge (adapter, --adapter); without one there is nothing to convert"
        raise ValueError(f"{name} is {checkpoint.kind.value}: {hint if adapter is None else 'it takes no adapter'}")
    if checkpoint.kind is Kind.TRAINING:
        model = read_checkpoint(os.fspath(base), vision_tower=vision_tower)
        if model.kind not in (Kind.IMAGE, Kind.PLLAVA):
            raise ValueError(f"{base} is {model.kind.value}: not a base for {name}")
        _compare_architectures(checkpoint, model)
        return model, checkpoint
    if checkpoint.kind is Kind.PLLAVA:
        trained = read_checkpoint(str(fetch_adapter(adapter)))
        if trained.kind is not Kind.ADAPTER:
            raise ValueError(f"{adapter} is {trained.kind.value}: not an adapter for {name}")
        return checkpoint, trained
    if checkpoint.kind is Kind.ADAPTER:
        raise ValueError(f"{name} is {checkpoint.kind.value}: pass the model as the source, and this as its adapter")
    trained = StoredCheckpoint(checkpoint.directory, checkpoint.kind, {}, {}, checkpoint.lora)
    if checkpoint.lora:  # an official checkpoint's projector was trained as well: it belongs to a kept adapter
        trained.weights = {key: value for key, value in checkpoint.weights.items() if "multi_modal_projector" in key}
    return checkpoint, trained


def _compare_architectures(trained: StoredCheckpoint, base: StoredCheckpoint) -> None:
    """Raise a `ValueError` if a training output's config says that it was trained on another model."""
    differences = []
    with reading_config(f"{trained.directory} or {base.directory}"):
        trained_config, base_config = (PllavaConfig(**each.values) for each in (trained, base))
    for part in ("text_config", "vision_config"):
        trained_part, base_part = getattr(trained_config, part), getattr(base_config, part)
        for key in sorted(type(trained_part)().to_dict().keys() - NOT_ARCHITECTURE):
            trained_value, base_value = getattr(trained_part, key, None), getattr(base_part, key, None)
            if trained_value != base_value:
                differences.append(f"{part}.{key}: {trained_value} was trained, {base_value} in the base")
    if differences:
        raise ValueError("\n".join([f"{base.directory} is not the model that was trained:", *differences]))


def _config(checkpoint: StoredCheckpoint, model: StoredCheckpoint, tokenizer: PreTrainedTokenizerFast) -> PllavaConfig:
    """Return the config to write. A training output has the base's architecture, and its own frames and pooling."""
    values = {**checkpoint.values, **{key: model.values[key] for key in model.values.keys() - CLIP_KEYS}}
    config = PllavaConfig(
        **values,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    config.architectures = [PllavaForConditionalGeneration.__name__]
    config.dtype = model.weights[EMBEDDINGS].meta.dtype if EMBEDDINGS in model.weights else None
    return config


def _set_pooling(config: PllavaConfig, kind: Kind, text: str | None, num_frames: int | None) -> list[str]:
    """
    Set frames and pooling: those that are asked for or, of a model that was trained on images only, the paper's for
    its patch grid. Such a model goes on reading images in full.

    Returns:
        What to report.
    """
    if kind is Kind.IMAGE:
        config.image_pooling_shape = [1, config.patch_grid, config.patch_grid]
        text, num_frames = text or AveragePooling.name, IMAGE_FRAMES if num_frames is None else num_frames
    if text is None and num_frames is None:
        return []
    pooling = choose_pooling(config, text or config.pooling, num_frames)
    config.video_pooling, config.num_frames = pooling, pooling.num_frames
    PllavaConfig(**config.to_dict())  # raises an error if a value exceeds its maximum
    notes = [f"{config.num_frames} frames per clip, pooled by {pooling} to {pooling.num_tokens:,} tokens"]
    rope = extended_rope(config, pooling)
    if rope != config.text_config.rope_parameters:
        context = config.text_config.max_position_embeddings
        notes.append(f"RoPE is scaled by {rope['factor']:g}: a video's tokens do not fit the context of {context:,}")
        config.text_config.rope_parameters = rope
    return notes


def _tie_embeddings(config: PllavaConfig, model: StoredCheckpoint) -> None:
    """
    Tie the output embeddings to the input embeddings if the config says so. A checkpoint may store both all the same:
    where they differ, the config is wrong, as transformers has it.
    """
    tied = config.tie_word_embeddings or config.text_config.tie_word_embeddings
    if tied and {HEAD, EMBEDDINGS} <= model.weights.keys():
        tied = torch.equal(model.weights[HEAD].read(), model.weights[EMBEDDINGS].read())
    if tied and model.weights.pop(HEAD, None):
        model.unused.add("lm_head, which is tied to the embeddings")
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied


def _image_settings(checkpoint: StoredCheckpoint, model: StoredCheckpoint) -> dict[str, Any]:
    """Return the settings of the image processor: the vision tower's, if that is stored apart."""
    places = [model.tower, checkpoint.directory, model.directory]
    directory = next((place for place in places if place and has_image_processor(place)), None)
    if directory is None:
        raise ValueError(f"{checkpoint.directory} has no preprocessor_config.json, which says how images are prepared")
    return CLIPImageProcessor.get_image_processor_dict(directory)[0]


def _differences(model: StoredCheckpoint, image_settings: dict[str, Any]) -> list[str]:
    """Return in what an image model differs from PLLaVA, to report it."""
    values = {**model.config, **image_settings}
    declared = model.family.differences if model.kind is Kind.IMAGE else ()
    texts = [*model.differences, *(each.text for each in declared if each.applies(values))]
    return [f"a difference: {text}" for text in texts]


def _tokenizer(checkpoint: StoredCheckpoint, model: StoredCheckpoint) -> PreTrainedTokenizerFast:
    """Load the tokenizer exactly as its tokenizer.json describes it, and add the placeholders to its vocabulary."""
    directory = directory_with("tokenizer.json", checkpoint, model)
    if directory is None:
        raise ValueError(
            f"{checkpoint.directory} has no tokenizer.json; save the tokenizer as a fast one, with transformers' "
            "AutoTokenizer"
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    new = [token for token in ("<image>", "<video>") if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.padding_side = "left"
    tokenizer.chat_template = None  # the processor has one
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


# --- checks ----------------------------------------------------------------------------------------------------------


def _drop_unread_vision_weights(model: StoredCheckpoint, config: PllavaConfig) -> None:
    for name in [name for name in model.weights if name.startswith(UNREAD_VISION_PARTS)]:
        del model.weights[name]
        model.unused.add(name.split(".")[2])
    for name in [name for name in model.weights if name.startswith(VISION_LAYERS)]:
        layer = int(name.removeprefix(VISION_LAYERS).split(".")[0])
        if layer >= config.num_vision_layers:
            del model.weights[name]
            model.unused.add(f"vision layer {layer}")


def _mismatches(stored: dict[str, StoredTensor], expected: dict[str, torch.Tensor]) -> list[str]:
    problems = [f"missing: {name} {tuple(expected[name].shape)}" for name in sorted(expected.keys() - stored.keys())]
    problems += [f"unexpected: {stored[name].key}" for name in sorted(stored.keys() - expected.keys())]
    for name in sorted(expected.keys() & stored.keys()):
        shape, expected_shape = tuple(stored[name].meta.shape), tuple(expected[name].shape)
        if shape != expected_shape:
            problems.append(f"wrong shape: {name} is {shape}, not {expected_shape}")
    return problems


def _adapter_problems(plan: Plan) -> list[str]:
    """Compare what was trained with the adapter that PEFT builds from its config, on the meta device."""
    if not plan.trained.lora:
        return []
    from peft import get_peft_model, get_peft_model_state_dict

    adapted = get_peft_model(copy.deepcopy(plan.meta_model), plan.adapter_config(), low_cpu_mem_usage=True)
    problems = _mismatches(plan.trained.adapter_tensors(), get_peft_model_state_dict(adapted))
    if not any(b.read().any() for _, b in plan.trained.lora.values()):
        problems.append("without effect: every B of the LoRA is zero, so it was never trained")
    return problems
