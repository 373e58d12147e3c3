"""Every PLLaVA and LLaVA checkpoint -> one directory that `from_pretrained` loads, shard by shard."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import CLIPImageProcessor, GenerationConfig, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import custom_object_save

from ..configuration_pllava import PllavaConfig
from ..loading import ADAPTER_WEIGHTS, lora_config
from ..modeling_pllava import PllavaForConditionalGeneration
from ..processing_pllava import PllavaProcessor
from ..video_processing_pllava import PllavaVideoProcessor
from .sources import Kind, Source, StoredTensor, pllava_name, read_source

ALPHA = 4.0  # of all the original's evaluation scripts
MAX_SHARD_SIZE = 5_000_000_000
MODEL_CONFIG = (
    "text_config",
    "vision_config",
    "projector_hidden_act",
    "multimodal_projector_bias",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "num_frames",
    "pooling_shape",
)
IMAGE_CONFIG = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)
# What may differ between a base and what was trained on it
NOT_ARCHITECTURE = {"dtype", "transformers_version", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")  # grow with the tokenizer


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    base: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    alpha: float | None = None,
    keep_adapter: bool = False,
    revision: str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """
    Writes a directory that `from_pretrained` loads, with processor, tokenizer, remote code and sharded weights.

    It needs memory for one shard, not for the model: headers are compared first, then each output shard is read,
    merged and written. `out` appears when it is whole.

    Args:
        source: Directory or Hub id of (a) an official PLLaVA checkpoint, (b) an output of the original's training
            script, (c) a llava-hf image checkpoint, LLaVA-1.5 or LLaVA-NeXT, or (d) one of ours, with an `adapter`.
        out: The directory to write; it must not exist, or be empty.
        base: For (b), the image checkpoint, (c) or (d), that was trained.
        adapter: For (d), directory or Hub id of a PEFT adapter.
        alpha: The LoRA's strength (equation 3 of the paper, see [`set_alpha`]). 4 by default for (a) and (b), the
            adapter's own for (d).
        keep_adapter: Writes the model without its LoRA, and that as a PEFT adapter into `out/adapter`, with alpha as
            its `lora_alpha`, which can be set when it is loaded. Else it is merged: W = W0 + alpha / r * B A.
        revision: Of `source` on the Hub.
        report: Is told what `source` is, and what of it is left out.

    Raises:
        ValueError: if a file is missing or broken, or a weight missing, left over or of the wrong shape.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: remove it, or choose another name")
    plan = plan_conversion(source, base, adapter, alpha, keep_adapter, revision)
    report(f"{source} is {plan.checkpoint.kind.value}")
    if plan.model.unused:
        report(f"left out, as PLLaVA does not read it: {', '.join(sorted(plan.model.unused))}")

    with _written_whole(out) as partial:
        _save_weights(plan, partial)
        if plan.keep_adapter:
            _save_adapter(plan, partial / "adapter", out)
        custom_object_save(plan.skeleton, partial, config=plan.config)
        plan.config.save_pretrained(partial)
        _generation_config(plan).save_pretrained(partial)
        _processor(plan).save_pretrained(partial)
    return out


@dataclass
class Plan:
    """
    What a conversion writes, checked: every weight is there and fits, and none is left over.

    Args:
        checkpoint: What was asked for.
        model: Where the model's weights are: the same, or a training output's base.
        trained: The LoRA, and the projector if it was trained with it.
        config: The model's; its vocabulary has grown where the tokenizer's placeholders need it.
        skeleton: The model as it was, on the meta device.
    """

    checkpoint: Source
    model: Source
    trained: Source
    alpha: float
    keep_adapter: bool
    tokenizer: PreTrainedTokenizerFast
    config: PllavaConfig
    skeleton: PllavaForConditionalGeneration


def plan_conversion(
    source: str | os.PathLike,
    base: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    alpha: float | None = None,
    keep_adapter: bool = False,
    revision: str | None = None,
) -> Plan:
    """Reads headers and configs, and compares. See [`convert`] for the arguments and the errors raised."""
    source = os.fspath(source)
    checkpoint = read_source(source, revision)
    model, trained = _take_apart(checkpoint, source, base, adapter)
    if not trained.lora and (alpha is not None or keep_adapter):
        raise ValueError(f"{source} is {checkpoint.kind.value}: no LoRA, so no alpha to set and no adapter to keep")
    if alpha is None:
        alpha = trained.config.get("lora_alpha", ALPHA)
    tokenizer = _tokenizer(checkpoint, model)
    config = _config(checkpoint, model, tokenizer)
    with torch.device("meta"):
        skeleton = PllavaForConditionalGeneration(config)
    _drop_vision_layers_that_are_not_read(model, config)
    expected = {pllava_name(name): tuple(weight.shape) for name, weight in skeleton.state_dict().items()}
    problems = [*_weight_problems(model, expected), *_lora_problems(trained, expected)]
    if problems:
        raise ValueError("\n".join([f"{source} cannot be converted:", *problems]))
    if max(tokenizer.get_vocab().values()) >= config.text_config.vocab_size:
        config.text_config.vocab_size = -(len(tokenizer) // -64) * 64  # matrix products like multiples of 64
    return Plan(checkpoint, model, trained, alpha, keep_adapter, tokenizer, config, skeleton)


def _take_apart(
    checkpoint: Source, name: str, base: str | os.PathLike | None, adapter: str | os.PathLike | None
) -> tuple[Source, Source]:
    """The model without its LoRA, and what was trained: the LoRA, and the projector if it is apart."""
    if (base is not None) != (checkpoint.kind is Kind.TRAINING):
        origin = checkpoint.config.get("_name_or_path")
        hint = f"name the image model that was trained (base, --base){f'; it says {origin!r}' if origin else ''}"
        raise ValueError(f"{name} is {checkpoint.kind.value}: {hint if base is None else 'it takes no base'}")
    if (adapter is not None) != (checkpoint.kind is Kind.OURS):
        hint = "name the adapter to merge (adapter, --adapter); by itself it needs no conversion"
        raise ValueError(f"{name} is {checkpoint.kind.value}: {hint if adapter is None else 'it takes no adapter'}")
    if checkpoint.kind is Kind.TRAINING:
        model = read_source(os.fspath(base))
        if model.kind not in (Kind.IMAGE, Kind.OURS):
            raise ValueError(f"{base} is {model.kind.value}: no base for {name}")
        _compare_architectures(checkpoint, model)
        return model, checkpoint
    if checkpoint.kind is Kind.OURS:
        trained = read_source(os.fspath(adapter))
        if trained.kind is not Kind.ADAPTER:
            raise ValueError(f"{adapter} is {trained.kind.value}: no adapter for {name}")
        return checkpoint, trained
    if checkpoint.kind is Kind.ADAPTER:
        raise ValueError(f"{name} is {checkpoint.kind.value}: give the model as the source, and this as its adapter")
    trained = Source(checkpoint.directory, checkpoint.kind, {}, {}, checkpoint.lora)
    if checkpoint.lora:  # the projector of an official checkpoint was trained, too: a kept adapter goes with it
        trained.weights = {key: value for key, value in checkpoint.weights.items() if "multi_modal_projector" in key}
    return checkpoint, trained


def _compare_architectures(trained: Source, base: Source) -> None:
    """Raises a `ValueError` if a training output says in its config that it was trained on another model."""
    differences = []
    ours, theirs = (PllavaConfig(**_model_config(source.config)) for source in (trained, base))
    for part in ("text_config", "vision_config"):
        ours_part, theirs_part = getattr(ours, part), getattr(theirs, part)
        for key in sorted(type(ours_part)().to_dict().keys() - NOT_ARCHITECTURE):
            values = getattr(ours_part, key, None), getattr(theirs_part, key, None)
            if values[0] != values[1]:
                differences.append(f"{part}.{key}: {values[0]} was trained, {values[1]} in the base")
    if differences:
        raise ValueError("\n".join([f"{base.directory} is not the model that was trained:", *differences]))


# --- what is written -------------------------------------------------------------------------------------------------


def _model_config(config: dict) -> dict:
    return {key: config[key] for key in MODEL_CONFIG if key in config}


def _config(checkpoint: Source, model: Source, tokenizer: PreTrainedTokenizerFast) -> PllavaConfig:
    config = PllavaConfig(
        # Of a training output, the model's parts are the base's, and the frames and the pooling its own
        **(_model_config(checkpoint.config) | _model_config(model.config) | _pooling(checkpoint.config)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )
    config.architectures = [PllavaForConditionalGeneration.__name__]
    config.text_config.pad_token_id = tokenizer.pad_token_id
    config.dtype = model.weights[VOCABULARY[0]].meta.dtype if VOCABULARY[0] in model.weights else None
    return config


def _pooling(config: dict) -> dict:
    return {key: config[key] for key in ("num_frames", "pooling_shape") if key in config}


def _tokenizer(checkpoint: Source, model: Source) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, exactly as its tokenizer.json says, with the placeholders in its vocabulary."""
    directories = [source.directory for source in (checkpoint, model)]
    directory = next((one for one in directories if (one / "tokenizer.json").exists()), None)
    if directory is None:
        raise ValueError(f"{checkpoint.directory} holds no tokenizer.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    new = [token for token in ("<image>", "<video>") if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.padding_side = "left"
    tokenizer.chat_template = None  # the processor's is the one
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _processor(plan: Plan) -> PllavaProcessor:
    if plan.checkpoint.kind is Kind.OURS:
        return PllavaProcessor.from_pretrained(plan.model.directory)
    directories = [source.directory for source in (plan.checkpoint, plan.model)]
    directory = next((one for one in directories if (one / "preprocessor_config.json").exists()), directories[0])
    settings, _ = CLIPImageProcessor.get_image_processor_dict(directory)
    settings = {key: settings[key] for key in IMAGE_CONFIG if key in settings}
    return PllavaProcessor(
        CLIPImageProcessor(**settings),
        plan.tokenizer,
        PllavaVideoProcessor(num_frames=plan.config.num_frames, **settings),
        pooling_shape=plan.config.pooling_shape,
        chat_template=_prompt_style(plan),
    )


def _prompt_style(plan: Plan) -> str:
    """The name of the chat template that fits the text model: the original's demo's, where there was one."""
    vocabulary = plan.tokenizer.get_vocab()
    if "<|im_start|>" in vocabulary:
        return "eval_vcg_llavanext"
    if "<|start_header_id|>" in vocabulary:
        return "llama_3"
    return "mistral" if plan.config.text_config.model_type == "mistral" else "plain"


def _generation_config(plan: Plan) -> GenerationConfig:
    directory, tokenizer = plan.checkpoint.directory, plan.tokenizer
    exists = (directory / "generation_config.json").exists()
    config = GenerationConfig.from_pretrained(directory) if exists else GenerationConfig()
    config._from_model_config = False
    turn_ends = {"<|im_end|>", "<|eot_id|>"} & tokenizer.get_vocab().keys()
    ends = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(sorted(turn_ends))}
    config.eos_token_id = sorted(ends) if len(ends) > 1 else tokenizer.eos_token_id
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    return config


# --- checks ----------------------------------------------------------------------------------------------------------


def _drop_vision_layers_that_are_not_read(model: Source, config: PllavaConfig) -> None:
    prefix = "model.vision_tower.encoder.layers."
    for name in [name for name in model.weights if name.startswith(prefix)]:
        layer = int(name.removeprefix(prefix).split(".")[0])
        if layer >= config.num_vision_layers:
            del model.weights[name]
            model.unused.add(f"vision layer {layer}")


def _weight_problems(model: Source, expected: dict[str, tuple[int, ...]]) -> list[str]:
    """What of the model's weights is missing, left over or of the wrong shape."""
    found = {name: tuple(tensor.meta.shape) for name, tensor in model.weights.items()}
    problems = [f"missing: {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"left over: {model.weights[name].key}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if found[name] != expected[name]:
            problems.append(f"wrong shape: {name} is {found[name]}, and not {expected[name]}")
    return problems


def _lora_problems(trained: Source, expected: dict[str, tuple[int, ...]]) -> list[str]:
    problems = []
    for name, tensor in trained.weights.items():
        if name not in expected:
            problems.append(f"left over: {tensor.key}")
        elif tuple(tensor.meta.shape) != expected[name]:
            problems.append(f"wrong shape: {name} is {tuple(tensor.meta.shape)}, and not {expected[name]}")
    for name, (a, b) in trained.lora.items():
        if name not in expected:
            problems.append(f"left over: {a.key}, {b.key}")
        elif (len(b.meta), a.meta.shape[1]) != expected[name]:
            shapes = f"{tuple(b.meta.shape)} x {tuple(a.meta.shape)}"
            problems.append(f"wrong shape: B x A of {name} is {shapes}, for a weight of {expected[name]}")
    if trained.lora and not any(b.read().any() for _, b in trained.lora.values()):
        problems.append("without effect: every B of the LoRA is zero, so it was never trained")
    return problems


# --- weights ---------------------------------------------------------------------------------------------------------


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A directory to write into, which becomes `out` at the end, and vanishes if that is not reached."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _save_weights(plan: Plan, directory: Path) -> None:
    """Writes the model's shards; what was trained is in them, unless it is kept as an adapter."""
    weights = plan.model.weights | ({} if plan.keep_adapter else plan.trained.weights)
    lora = {} if plan.keep_adapter else plan.trained.lora
    rows = plan.config.text_config.vocab_size
    planned = {name: tensor.meta for name, tensor in weights.items()}
    planned |= {name: planned[name].new_empty(rows, *planned[name].shape[1:]) for name in VOCABULARY}
    # A shard of the output is held in memory: none is larger than the largest of the source
    split = split_torch_state_dict_into_shards(planned, max_shard_size=min(MAX_SHARD_SIZE, plan.model.largest_file))
    size = sum(tensor.nbytes for tensor in planned.values())
    with tqdm(total=size, desc="Converting", unit="B", unit_scale=True) as bar:
        for file, names in split.filename_to_tensors.items():
            shard = {}
            for name in names:
                shard[name] = weights[name].read()
                if name in lora:
                    shard[name] = _merge(shard[name], *lora[name], plan)
                if name in VOCABULARY:
                    shard[name] = _grow(shard[name], rows)
                bar.update(shard[name].nbytes)
            save_file(shard, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": {"total_size": size}, "weight_map": split.tensor_to_filename}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _merge(weight: torch.Tensor, a: StoredTensor, b: StoredTensor, plan: Plan) -> torch.Tensor:
    """W0 + alpha / r * B A (equation 3 of the paper), in float32, as the weight's own dtype."""
    rank = len(a.meta)
    scale = plan.alpha / (math.sqrt(rank) if plan.trained.config.get("use_rslora") else rank)
    return torch.addmm(weight.float(), b.read().float(), a.read().float(), alpha=scale).to(weight.dtype)


def _grow(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """With the mean of its rows as new rows: such a token's logit is the mean of all, so it never wins."""
    if rows == len(weight):
        return weight
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _save_adapter(plan: Plan, directory: Path, base: Path) -> None:
    trained = plan.trained
    targets = "|".join(sorted({name.split(".")[-2] for name in trained.lora}))
    config = lora_config(trained.rank, plan.alpha, targets=targets)
    config.use_rslora = trained.config.get("use_rslora", False)
    config.base_model_name_or_path = str(base.resolve())
    config.inference_mode = True
    config.save_pretrained(directory)
    weights = {f"base_model.model.{name}": tensor.read() for name, tensor in trained.weights.items()}
    for name, pair in trained.lora.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        weights |= {f"{module}.lora_{half}.weight": tensor.read() for half, tensor in zip("AB", pair, strict=True)}
    save_file(weights, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
