"""Writing a converted checkpoint: shard by shard, with config, processor, tokenizer and remote code."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import CLIPImageProcessor, GenerationConfig
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME

from ..files import is_disk_full
from ..hub_cards.cards.model_card import write_model_card
from ..origins import ModelSource
from ..pooling_pllava import POOLING_KEYS
from ..processing_pllava import PllavaProcessor
from ..video_processing_pllava import PllavaVideoProcessor
from .planning import Plan, plan_conversion
from .reading import Kind, StoredTensor
from .weight_names import VOCABULARY

MAX_SHARD_SIZE = 1_000_000_000  # bytes, which a conversion holds in memory
IMAGE_KEYS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    base: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    alpha: float | None = None,
    keep_adapter: bool = False,
    revision: str | None = None,
    vision_tower: str | os.PathLike | None = None,
    num_frames: int | None = None,
    pooling: str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """
    Write a directory that `from_pretrained` loads, with processor, tokenizer, remote code, card and sharded weights.
    Its config records the source: id and commit on the Hub, a fingerprint of what was read, and alpha.

    It needs memory for one shard, not for the model: headers are compared first, then each output shard is read,
    merged and written. `out` appears only when it is complete.

    Args:
        source: Directory or Hub id of (a) an official PLLaVA checkpoint, (b) an output of the original's training
            script, (c) an image model of one of the `FAMILIES` in `families.py`, or (d) a PLLaVA of this project, with
            an `adapter`.
        out: The directory to write; it must be empty or not exist.
        base: For (b), the model that was trained: a checkpoint (c) or (d).
        adapter: For (d), directory of a PEFT adapter, or `ORGANISATION/NAME[@REVISION][/FOLDER]` on the Hub.
        alpha: The LoRA's strength (equation 3 of the paper, see [`set_alpha`]). By default 4 for (a) and (b), and the
            adapter's own for (d).
        keep_adapter: Write the model without its LoRA, which becomes a PEFT adapter in `out/adapter`; alpha is its
            `lora_alpha`, which can be changed on loading. By default it is merged: W = W0 + alpha / r * B A.
        revision: Revision of `source` on the Hub.
        vision_tower: For (c) in the original's layout, for what it lacks of its vision tower: directory or Hub id of
            another copy than the one that its config names, in a CLIP, a SigLIP or a LLaVA.
        num_frames: Frames per clip; by default 16 for (c), and those of the training for others.
        pooling: In the notation of [`parse_pooling`], "slowfast" or "average-16x12x12"; by default `average` for (c),
            in the shape of the paper, and that of the training for others. Images of (c) are read in full. If the
            tokens of a video do not fit the text model's context, its RoPE is scaled.
        report: Called with lines of text: the kind of `source`, which of its weights are not used, and in what it
            differs from the PLLaVA that it becomes.

    Raises:
        ValueError: if `source` is of no family, with the reason and the nearest that works; if a file is missing or
            broken; if a weight is missing, unexpected or of the wrong shape; if the pooling does not fit the model.
        OSError: if the disk is full.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: remove it, or choose another name")
    plan = plan_conversion(
        source, base, adapter, alpha, keep_adapter, revision, vision_tower, num_frames=num_frames, pooling=pooling
    )
    family = f" ({plan.checkpoint.family.name})" if plan.checkpoint.kind is Kind.IMAGE else ""
    report(f"{source} is {plan.checkpoint.kind.value}{family}")
    if plan.model.unused:
        report(f"not used by PLLaVA, left out: {', '.join(sorted(plan.model.unused))}")
    for note in plan.notes:
        report(note)

    with _complete_or_absent(out) as partial:
        _save_weights(plan, partial)
        custom_object_save(plan.meta_model, partial, config=plan.config)
        plan.config.origin = _origin(plan)
        plan.config.save_pretrained(partial)
        _generation_config(plan).save_pretrained(partial)
        processor = _processor(plan)
        processor.save_pretrained(partial)
        if plan.keep_adapter:
            _save_adapter(plan, processor, partial / "adapter", out)
        write_model_card(partial, out.name)
    return out


@contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """
    Give a temporary directory to write into, which is renamed to `out` at the end and removed after an error.

    Raises:
        OSError: if the disk is full.
    """
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(out)
    except BaseException as error:
        shutil.rmtree(partial)
        if is_disk_full(error):
            raise OSError(f"The disk is full: {out} was not written. Free some space and run this again") from error
        raise


# --- weights ---------------------------------------------------------------------------------------------------------


def _save_weights(plan: Plan, directory: Path) -> None:
    """Write the model's shards; what was trained is merged into them, unless it is kept as an adapter."""
    weights = plan.model.weights | ({} if plan.keep_adapter else plan.trained.weights)
    lora = {} if plan.keep_adapter else plan.trained.lora
    rows = plan.config.text_config.vocab_size
    planned = {name: tensor.meta for name, tensor in weights.items()}
    planned |= {name: planned[name].new_empty(rows, *planned[name].shape[1:]) for name in planned.keys() & VOCABULARY}
    # An output shard is held in memory: it must not be larger than the largest file of the source
    largest = max(file.stat().st_size for file in {tensor.file for tensor in plan.model.weights.values()})
    split = split_torch_state_dict_into_shards(planned, max_shard_size=min(MAX_SHARD_SIZE, largest))
    size = sum(tensor.nbytes for tensor in planned.values())
    with tqdm(total=size, desc="Converting", unit="B", unit_scale=True) as bar:
        for file, names in split.filename_to_tensors.items():
            shard = {}
            for name in names:
                shard[name] = weights[name].read()
                if name in lora:
                    shard[name] = _merge(shard[name], *lora[name], plan)
                if name in VOCABULARY:
                    shard[name] = _add_rows(shard[name], rows)
                bar.update(shard[name].nbytes)
            save_file(shard, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": {"total_size": size}, "weight_map": split.tensor_to_filename}
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _merge(weight: torch.Tensor, a: StoredTensor, b: StoredTensor, plan: Plan) -> torch.Tensor:
    """W0 + alpha / r * B A (equation 3 of the paper), computed in float32, in the dtype of the weight."""
    rank = len(a.meta)
    scale = plan.alpha / (math.sqrt(rank) if plan.trained.config.get("use_rslora") else rank)
    merged, a, b = (_copy_to_mmap(tensor, torch.float32) for tensor in (weight, a.read(), b.read()))
    return _copy_to_mmap(merged.addmm_(b, a, alpha=scale), weight.dtype)


def _copy_to_mmap(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    Copy a tensor into memory that returns to the system when the copy is freed. glibc before 2.38 hardly reuses blocks
    of this size with torch's alignment, so the heap would grow with every merge (glibc bug 14581).
    """
    memory = mmap(-1, tensor.numel() * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(tensor.shape).copy_(tensor)


def _add_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Add rows that are the mean of all: such a token's logit is the mean logit, so it is never the largest."""
    if rows == len(weight):
        return weight
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _save_adapter(plan: Plan, processor: PllavaProcessor, directory: Path, base: Path) -> None:
    config = plan.adapter_config()
    config.base_model_name_or_path = str(base.resolve())
    config.inference_mode = True
    config.save_pretrained(directory)
    weights = {name: tensor.read() for name, tensor in plan.trained.adapter_tensors().items()}
    save_file(weights, directory / ADAPTER_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    processor.save_pretrained(directory)
    base_source = ModelSource(origin=plan.config.origin)
    write_model_card(directory, f"{base.name}/{directory.name}", base_source)


def _origin(plan: Plan) -> dict[str, Any]:
    """Return what config.json says about where the weights come from."""
    kind = "merged" if plan.checkpoint.kind is Kind.PLLAVA else plan.checkpoint.kind.name.lower()
    origin = {"kind": kind, "source": ModelSource.of(plan.checkpoint.directory).to_dict()}
    if plan.model is not plan.checkpoint:
        origin["base"] = ModelSource.of(plan.model.directory).to_dict()
    if plan.model.tower is not None:
        origin["vision_tower"] = ModelSource.of(plan.model.tower).to_dict()
    if plan.trained.kind is Kind.ADAPTER:
        origin["adapter"] = ModelSource.of(plan.trained.directory).to_dict()
    if plan.trained.lora and not plan.keep_adapter:
        origin |= {"alpha": plan.alpha, "rank": len(next(iter(plan.trained.lora.values()))[0].meta)}
    return origin


# --- processor and generation config ---------------------------------------------------------------------------------


def _processor(plan: Plan) -> PllavaProcessor:
    config, pooling = plan.config, {key: getattr(plan.config, key) for key in POOLING_KEYS}
    if plan.checkpoint.kind is Kind.PLLAVA:
        processor = PllavaProcessor.from_pretrained(plan.model.directory, **pooling)
        processor.video_processor.num_frames = config.num_frames
        return processor
    settings = {key: plan.image_settings[key] for key in IMAGE_KEYS if key in plan.image_settings}
    settings.setdefault("do_center_crop", "crop_size" in settings)  # image processors of SigLIP do not crop
    return PllavaProcessor(
        CLIPImageProcessor(**settings),
        plan.tokenizer,
        PllavaVideoProcessor(num_frames=config.num_frames, **settings),
        **pooling,
        chat_template=_chat_template_name(plan),
    )


def _chat_template_name(plan: Plan) -> str:
    """Return the first chat template of the model's family that fits its text model and its tokenizer."""
    vocabulary, text_model = plan.tokenizer.get_vocab(), plan.config.text_config.model_type
    return next(
        prompt.template
        for prompt in plan.model.family.prompts
        if (prompt.token is None or prompt.token in vocabulary)
        and (prompt.text_models is None or text_model in prompt.text_models)
    )


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
