"""The card of the model, adapter or processor in a folder, from its configs and the summary of its training."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, PROCESSOR_NAME

from ...adapters import ALPHA_FILE
from ...configuration_pllava import PllavaConfig
from ...files import read_object, replace_file
from ...model_card_pllava import (
    build_card,
    describe_pooling,
    hub_ids,
    is_generated,
    name_source,
    one_or_list,
    sign,
    sources,
)
from ...origins import CARD, ModelSource
from ...pooling_pllava import PoolingMixin, parse_pooling
from .nano_card import nano_options
from .rendering import METHOD_FIGURE, render
from .training_log import LOSS_FIGURE, TrainingSummary

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ADAPTER_FOLDER = "adapter"  # that `pllava convert --keep-adapter` writes into a model's folder


def write_model_card(directory: Path, repo_id: str, base: ModelSource | None = None) -> None:
    """
    Write README.md into a folder, and the figure that it shows. A card that somebody has written or edited stays.

    Args:
        repo_id: The id on the Hub, for the how-to; the folder's name if it has none yet.
        base: See [`build_model_card`].
    """
    card = directory / CARD
    if not card.exists() or is_generated(card.read_text(encoding="utf-8")):
        if not (directory / METHOD_FIGURE.name).exists():
            shutil.copyfile(METHOD_FIGURE, directory / METHOD_FIGURE.name)
        replace_file(card, sign(str(build_model_card(directory, repo_id, base))))


def build_model_card(directory: Path, repo_id: str, base: ModelSource | None = None) -> ModelCard:
    """
    Build the card of the model, adapter or processor in a folder.

    Args:
        base: The base model; by default an adapter's is the one in its config, and a model's what its origin says.

    Raises:
        ValueError: if the folder has none of the three, or a file in it is broken.
    """
    summary = TrainingSummary.read(directory)
    options: dict[str, Any] = {
        "figure": METHOD_FIGURE.name if (directory / METHOD_FIGURE.name).exists() else None,
        "metadata": {"datasets": [source["repo_id"] for source in summary.data if source.get("repo_id")] or None}
        if summary
        else {},
        "sections": [_training_section(directory, summary, base)] if summary else [],
    }
    if (directory / ADAPTER_CONFIG_NAME).exists():
        return _adapter_card(directory, repo_id, base or adapter_base(directory), summary, **options)
    if (directory / CONFIG_NAME).exists():
        config, nano = PllavaConfig.from_pretrained(directory), nano_options(directory)
        named = {"base_model": base.repo_id} if base and base.repo_id else {}
        options["metadata"] |= {**named, **nano.get("metadata", {})}
        has_adapter = (directory / ADAPTER_FOLDER / ADAPTER_CONFIG_NAME).exists()
        options["sections"] += [render("adapter_folder.md", repo_id=repo_id)] if has_adapter else []
        options["sections"] += [_origin_section(config.origin)] if config.origin else []
        options["sections"] += nano.get("sections", [])
        return build_card(repo_id, config, nano.get("summary"), **options)
    if (directory / PROCESSOR_NAME).exists():
        return build_card(repo_id, _shape(directory), metadata={"pipeline_tag": None}, processor=True)
    raise ValueError(
        f"{directory} has no {CONFIG_NAME}, {ADAPTER_CONFIG_NAME} or {PROCESSOR_NAME}: it is not a model's folder"
    )


# --- adapters --------------------------------------------------------------------------------------------------------


def adapter_base(directory: Path) -> ModelSource:
    """Return the base model of the adapter in a folder: the one that its config names, or that its training noted."""
    config, summary = read_object(directory / ADAPTER_CONFIG_NAME), TrainingSummary.read(directory)
    name = config.get("base_model_name_or_path")
    noted = ModelSource(**summary.base) if summary else ModelSource()
    if name and name != noted.repo_id and (Path(name).is_dir() or HUB_ID.fullmatch(name)):
        return ModelSource.of(name, config.get("revision"))
    return noted


def read_alphas(directory: Path) -> dict[str, Any]:
    """Return an adapter's `training` alpha, None if it is not known, and the `recommended` ones of sweeps, by name."""
    summary, file = TrainingSummary.read(directory), directory / ALPHA_FILE
    if file.exists():
        return read_object(file, "training", "recommended")
    return {"training": summary and summary.lora and summary.lora["alpha"], "recommended": {}}


def _adapter_card(
    directory: Path, repo_id: str, base: ModelSource, summary: TrainingSummary | None, **options: Any
) -> ModelCard:
    text = (
        f"A LoRA adapter and a projector for {name_source(base.to_dict())}. With them it is a video model that "
        "answers questions about clips and describes them, [PLLaVA](https://arxiv.org/abs/2404.16994)."
    )
    if base.repo_id is None:
        text += (
            "\n\n**The base model is a folder on the machine of the training**: the adapter loads nowhere else until "
            "the base is published, and this is pushed again with `--base-model` and the base's id."
        )
    metadata = {
        "library_name": "peft",
        "base_model": one_or_list([base.repo_id] if base.repo_id else hub_ids(base.origin)),
        "base_model_relation": "adapter" if base.repo_id else None,
        "license": base.license,
        "tags": ["pllava", "video", "lora"],
    }
    facts = {"base": name_source(base.to_dict()), "lora": read_object(directory / ADAPTER_CONFIG_NAME)}
    options["sections"] = [render("adapter.md", alphas=read_alphas(directory), **facts), *options["sections"]]
    options["metadata"] |= metadata
    return build_card(repo_id, _shape(directory, summary), text, adapter=True, **options)


@dataclass(frozen=True)
class Shape(PoolingMixin):
    """The frames and the poolings of an adapter or a processor, which have no config of the model."""

    num_frames: int
    pooling: str
    pooling_shape: list
    image_pooling_shape: list | None


def _shape(directory: Path, summary: TrainingSummary | None = None) -> Shape:
    if summary is not None:
        frames = summary.frames
        pooling = parse_pooling(frames["pooling"])
        return Shape(frames["num_frames"], pooling.name, pooling.shape, frames["image_pooling_shape"])
    processor = read_object(directory / PROCESSOR_NAME, "pooling_shape", "video_processor")
    num_frames, name = processor["video_processor"]["num_frames"], processor.get("pooling", "average")
    return Shape(num_frames, name, processor["pooling_shape"], processor.get("image_pooling_shape"))


# --- sections --------------------------------------------------------------------------------------------------------


def _training_section(directory: Path, summary: TrainingSummary, base: ModelSource | None) -> str:
    figure = LOSS_FIGURE if (directory / LOSS_FIGURE).exists() else None
    return render(
        "training.md",
        summary=summary,
        base=name_source(base.to_dict() if base else summary.base),
        pooled=describe_pooling(parse_pooling(summary.frames["pooling"])),
        figure=figure,
    )


def _origin_section(origin: dict[str, Any]) -> str:
    links = {part: {**source, "link": name_source(source)} for part, source in sources(origin).items()}
    return render("origin.md", sources=links, alpha=origin.get("alpha"), rank=origin.get("rank"))
