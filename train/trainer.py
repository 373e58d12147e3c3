"""
TRL's trainers, set up for video: rows are streamed and decoded by our loader, LoRA on the text model and the projector
are trained, the tower is frozen.
"""

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset, IterableDataset
from datasets.utils.py_utils import convert_file_size_to_int
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ..modeling_pllava import select_labelled
from .card import build_card, global_batch_size
from .collator import PreferenceCollator, VideoChatCollator
from .data import Source
from .features import FeatureCache
from .skipped import SkippedExamples
from .stream import RowStream, StreamLoader

GROUPS = {"lora": "lora_", "projector": "multi_modal_projector"}  # of the trained weights, by what their names have


class StreamingMixin:
    """
    What a trainer of transformers' needs for streams of videos: batches from a [`StreamLoader`], whose place is kept
    in the checkpoints, and figures about it in the logs:

    - `data_wait`: share of the time in which the next batch was not ready;
    - `tokens_per_second`: of all processes, visual tokens counted;
    - `skipped/unreadable`, `skipped/too_long`, `skipped/lost_turns`: of all processes, since the start;
    - `grad_norm/lora`, `grad_norm/projector`: before clipping.
    """

    def __init__(self, *args: Any, loader: StreamLoader, sources: list[Source], **kwargs: Any):
        self.loader, self.sources = loader, sources
        super().__init__(*args, **kwargs)
        self._since = self._read_meters()
        self._tokens = 0
        self._grad_norms: dict[str, float] = {}

    def get_train_dataloader(self) -> StreamLoader:
        # Not prepared by accelerate: it would deal out batches that are dealt out already
        return self.loader

    # --- going on ---

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As any trainer's; `resume_from_checkpoint=True` is the last checkpoint that was written to its end."""
        if resume_from_checkpoint is True:
            checkpoint = last_checkpoint(Path(self.args.output_dir))
            if checkpoint is None:
                raise ValueError(f"{self.args.output_dir} has no checkpoint to go on from")
            resume_from_checkpoint = str(checkpoint)
        if resume_from_checkpoint:
            self._load_place(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _place(self) -> dict[str, Any]:
        return {
            "world_size": self.args.world_size,
            "batch_size": self.loader.batch_size,
            "loader": self.loader.state_dict(),
            "num_tokens": getattr(self, "_total_train_tokens", 0),
        }

    def _load_place(self, checkpoint: Path) -> None:
        if not (checkpoint / _place_name(0)).exists():
            raise ValueError(f"{checkpoint} does not say where the data stood: another trainer saved it")
        place = json.loads((checkpoint / _place_name(0)).read_text(encoding="utf-8"))
        for name, now in {"world_size": self.args.world_size, "batch_size": self.loader.batch_size}.items():
            if place[name] != now:
                raise ValueError(
                    f"{checkpoint} was saved with {name}={place[name]}, and goes on only with that; got {now}"
                )
        place = json.loads((checkpoint / _place_name(self.args.process_index)).read_text(encoding="utf-8"))
        self.loader.load_state_dict(place["loader"])
        self._total_train_tokens = place["num_tokens"]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Before the rest: a checkpoint is complete when transformers has written its own state
        directory = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / _place_name(self.args.process_index)
        file.write_text(json.dumps(self._place()), encoding="utf-8")
        super()._save_checkpoint(model, trial)

    # --- what is saved ---

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        if self.is_world_process_zero():
            build_card(self, self.sources).save(Path(self.args.output_dir) / "README.md")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            directory = Path(output_dir or self.args.output_dir)
            build_card(self, self.sources).save(directory / "README.md")  # in place of PEFT's
            (directory / TRAINING_ARGS_NAME).unlink()  # a pickle, and nothing reads it
            (directory / "training_args.json").write_text(self.args.to_json_string(), encoding="utf-8")

    # --- figures ---

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self._tokens += int(inputs["attention_mask"].sum())
        self._batch = {name: inputs.pop(name) for name in ("source", "id", "feature_keys")}
        if (cache := self.loader.collator.features) is not None:
            media = (inputs.get(name, ()) for name in ("pixel_values", "pixel_values_videos"))
            cache.expect(*media, self._batch["feature_keys"])
        return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        step = self.state.global_step + 1
        if step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step):
            self._grad_norms = self._norms_by_group()
        return super()._clip_grad_norm(model)

    def _norms_by_group(self) -> dict[str, float]:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            from deepspeed.utils import safe_get_full_grad as gradient
        else:
            gradient = _gradient
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        norms = {}
        for group, part in GROUPS.items():
            gradients = [gradient(weight) for name, weight in trained if part in name]
            norm = torch.nn.utils.get_total_norm([grad for grad in gradients if grad is not None])
            norms[f"grad_norm/{group}"] = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        return norms

    def _read_meters(self) -> dict[str, float]:
        return {"time": time.perf_counter(), "waited": self.loader.waited}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and "loss" in logs:
            now = self._read_meters()
            seconds = now["time"] - self._since["time"]
            skipped = self.loader.skipped.state_dict()
            local = {"tokens": self._tokens, "waited": now["waited"] - self._since["waited"], **skipped}
            total = defaultdict(float)
            for figures in gather_object([local]):
                for name, value in figures.items():
                    total[name] += value
            logs["data_wait"] = total["waited"] / seconds / self.args.world_size
            logs["tokens_per_second"] = total["tokens"] / seconds
            logs |= {f"skipped/{name}": int(total[name]) for name in ("unreadable", "too_long", "lost_turns")}
            logs |= self._grad_norms
            self._tokens, self._since = 0, now
            self.state.epoch = float(self.loader.place["epoch"])  # transformers takes the whole run for one
        super().log(logs, start_time)


class PllavaSFTTrainer(StreamingMixin, SFTTrainer):
    """TRL's `SFTTrainer` on a stream of videos; logs the loss of each source as `loss/NAME`, with TRL from 1.16 on."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.model.register_forward_hook(self._note_losses)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        # TRL leaves out what is not labelled behind the model, and on a CPU not at all; most of it are visual tokens
        labelled = select_labelled(inputs["labels"])
        self._counts = labelled["positions_to_keep"].sum(-1).tolist()
        return super().training_step(model, {**inputs, **labelled}, num_items_in_batch)

    def _note_losses(self, module: nn.Module, args: Any, output: Any) -> None:
        # `compute_loss` keeps the tokens' losses to itself: they are read where the model gives them
        if self.model.training and getattr(output, "log_probs", None) is not None:
            rows = output.log_probs.detach().flatten().float().split(self._counts)
            for source, row in zip(self._batch["source"], rows, strict=True):
                self._losses[source].append(torch.stack([-row.sum(), row.new_tensor(len(row))]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and "loss" in logs:
            local = {source: torch.stack(rows).sum(0).tolist() for source, rows in self._losses.items()}
            self._losses.clear()
            total = defaultdict(lambda: torch.zeros(2))
            for losses in gather_object([local]):
                for source, loss in losses.items():
                    total[source] += torch.tensor(loss)
            logs |= {f"loss/{source}": float(loss / count) for source, (loss, count) in sorted(total.items())}
        super().log(logs, start_time)


class PllavaDPOTrainer(StreamingMixin, DPOTrainer):
    """TRL's `DPOTrainer` on a stream of videos."""

    def _prepare_dataset(self, dataset: IterableDataset, *args: Any, **kwargs: Any) -> IterableDataset:
        # It would be tokenised, unless it has a column "images". A `skip_prepare_dataset` in `DPOConfig`, as there is
        # one in `SFTConfig`, would make this unnecessary.
        return dataset


def build_trainer(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    train_dataset: Dataset | IterableDataset,
    args: SFTConfig | DPOConfig,
    peft_config: LoraConfig | None = None,
    sampling: str = "random",
    shuffle_buffer_size: int = 100,
    max_unreadable: float = 0.2,
    feature_cache: str | None = None,
    feature_cache_size: str = "200GB",
    sources: list[Source] | None = None,
) -> PllavaSFTTrainer | PllavaDPOTrainer:
    """
    A trainer over conversations about videos and images, or, with a `DPOConfig`, over preferences.

    Args:
        train_dataset: Rows of `messages`, with `videos` and `images` (see [`VideoChatCollator`]), undecoded; for a
            `DPOConfig` with `chosen` and `rejected`, too. A `Dataset` is shuffled as a whole, and its length gives the
            number of steps; of an `IterableDataset`, `args.max_steps` does.
        args: What the collator does is switched off in it.
        peft_config: The adapter to train (then the vision tower is frozen); without one the whole model is trained.
        sampling: How the collator draws frames, "random" or "uniform".
        shuffle_buffer_size: Rows of a stream that are shuffled together (see [`RowStream`]).
        max_unreadable: The run stops when a larger share of the examples cannot be read. What is left out is listed in
            `_skipped.jsonl` in the output directory, which is not pushed.
        feature_cache: Directory for the vision tower's features of each clip (see [`FeatureCache`]); from the second
            epoch they are read in place of the clip. They take 18.9 MB a clip at 7B.
        feature_cache_size: What that directory may hold; further clips are decoded in every epoch.
        sources: Where the rows come from, for the card.

    Raises:
        ValueError: if the number of steps is not known, or what is asked for does not go together.
    """
    preference = isinstance(args, DPOConfig)
    if isinstance(train_dataset, Dataset):
        if args.max_steps < 0:
            args.max_steps = count_steps(len(train_dataset), args)
        train_dataset = train_dataset.shuffle(seed=args.seed).to_iterable_dataset()
    elif args.max_steps < 0:
        raise ValueError("A stream does not tell its length: set `max_steps`")
    args.remove_unused_columns = False
    args.hub_strategy = HubStrategy.END  # pushes in between would write and upload a pickle
    args.ignore_data_skip = True  # the stream itself goes on where it stood, and decodes nothing that was seen
    if not preference:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
    if peft_config is not None:
        model.model.vision_tower.requires_grad_(False)
    skipped = SkippedExamples(Path(args.output_dir) / "_skipped.jsonl", max_unreadable)
    collator = (PreferenceCollator if preference else VideoChatCollator)(processor, sampling, args.max_length, skipped)
    if feature_cache:
        tower = model.get_base_model().model.vision_tower if isinstance(model, PeftModel) else model.model.vision_tower
        if preference or any(weight.requires_grad for weight in tower.parameters()):
            raise ValueError("`feature_cache` is for supervised fine-tuning with a frozen tower: pass a `peft_config`")
        arithmetic, max_bytes = "bf16" if args.bf16 else "", convert_file_size_to_int(feature_cache_size)
        collator.features = FeatureCache(Path(feature_cache), tower, processor, arithmetic, max_bytes, args.world_size)
        collator.features.watch(tower)
    seed = args.seed if args.data_seed is None else args.data_seed
    rows = RowStream(train_dataset, seed, shuffle_buffer_size, args.process_index, args.world_size)
    loader = StreamLoader(
        rows, collator, args.train_batch_size, args.dataloader_num_workers, args.dataloader_prefetch_factor
    )
    set_seed(args.seed)  # TRL makes the adapter before it sets the seed, up to 1.14
    trainer_class = PllavaDPOTrainer if preference else PllavaSFTTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=train_dataset,
        processing_class=processor,
        peft_config=peft_config,
        loader=loader,
        sources=sources or [],
    )
    if args.bf16 and not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:
        for weight in trainer.model.parameters():  # AdamW's steps are lost in bfloat16's eight bits
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    return trainer


def count_steps(rows: int, args: TrainingArguments) -> int:
    """How many steps `args.num_train_epochs` over that many rows take; the last one is filled from the next epoch."""
    return math.ceil(rows * args.num_train_epochs / global_batch_size(args))


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end, if there is one."""
    found = sorted(output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.split("-")[-1]))
    return next((checkpoint for checkpoint in reversed(found) if _is_complete(checkpoint)), None)


def _is_complete(checkpoint: Path) -> bool:
    # The last file that transformers writes
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _place_name(process_index: int) -> str:
    return f"data_state_{process_index}.json"


def _gradient(weight: nn.Parameter) -> torch.Tensor | None:
    return weight.grad
