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
from .mixture import Mixture, as_mixture
from .skipped import SkippedExamples
from .stream import RowStream, StreamLoader, deal_anew

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

    def __init__(self, *args: Any, loader: StreamLoader, sources: list[Source], rows: int | None, **kwargs: Any):
        self.loader, self.sources, self.rows = loader, sources, rows
        self._begun = {"step": 0, "examples": 0}
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
        step = self.state.global_step
        return {
            "world_size": self.args.world_size,
            "step": step,
            "examples": self._begun["examples"] + (step - self._begun["step"]) * global_batch_size(self.args),
            "loader": self.loader.state_dict(),
            "num_tokens": getattr(self, "_total_train_tokens", 0),
        }

    def _load_place(self, checkpoint: Path) -> None:
        rank, files = self.args.process_index, checkpoint.glob(_place_name("*"))
        places = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
        self._begun = places.get(_place_name(0)) or places.get(_place_name(rank))
        if self._begun is None:
            raise ValueError(f"{checkpoint} does not say where the data stood: another trainer saved it")
        world_size = self._begun["world_size"]
        same = world_size == self.args.world_size
        names = [_place_name(other) for other in ([rank] if same else range(world_size))]
        if missing := ", ".join(name for name in names if name not in places):
            raise ValueError(f"{checkpoint} lacks what other machines saved. Copy there: {missing}")
        if not same and (self.loader.rows.by_shards or self._begun["loader"]["place"]["by_shards"]):
            raise ValueError(
                f"{checkpoint} was saved by {world_size} processes, and goes on only with as many: each reads shards "
                f"of its own, since these rows come with their clips; got {self.args.world_size}"
            )
        states = [places[name]["loader"] for name in names]
        self.loader.load_state_dict(states[0] if same else deal_anew(states, rank))
        self._total_train_tokens = self._begun["num_tokens"]
        if self.rows is not None:  # of another batch size, what is left takes another number of steps
            left = self.rows - self._begun["examples"]
            self.args.max_steps = self._begun["step"] + math.ceil(left / global_batch_size(self.args))

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
            self.loader.skipped.check(int(total["seen"]), int(total["unreadable"]))
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
    train_dataset: Dataset | IterableDataset | Mixture,
    args: SFTConfig | DPOConfig,
    peft_config: LoraConfig | None = None,
    sampling: str = "random",
    shuffle_buffer_size: int = 4000,
    max_unreadable: float = 0.2,
    feature_cache: str | None = None,
    sources: list[Source] | None = None,
) -> PllavaSFTTrainer | PllavaDPOTrainer:
    """
    A trainer over conversations about videos and images, or, with a `DPOConfig`, over preferences.

    Args:
        train_dataset: Rows of `messages`, with `videos` and `images` (see [`VideoChatCollator`]), undecoded; for a
            `DPOConfig` with `chosen` and `rejected`, too. A `Dataset` is shuffled as a whole, anew each epoch, and its
            length gives the number of steps; of an `IterableDataset`, `args.max_steps` does. A [`Mixture`] is what
            [`load_sources`] gives.
        args: What the collator does is switched off in it.
        peft_config: The adapter to train (then the vision tower is frozen); without one the whole model is trained.
        sampling: How the collator draws frames, "random" or "uniform".
        shuffle_buffer_size: Rows that are shuffled together where there are too many for all (see [`RowStream`]).
        max_unreadable: The run stops when clearly more of the last thousand examples cannot be read, which is looked
            at when figures are logged, or so many in a row that it is no chance (see [`SkippedExamples`]). What is
            left out is listed in `_skipped.jsonl` in the output directory, which is not pushed.
        feature_cache: Directory for the vision tower's features of each clip (see [`FeatureCache`]); from the second
            epoch they are read in place of the clip.
        sources: Where the rows come from, for the card.

    Raises:
        ValueError: if the number of steps is not known, or what is asked for does not go together.
    """
    preference = isinstance(args, DPOConfig)
    mixture, rows = as_mixture(train_dataset), None
    if args.max_steps < 0:
        if mixture.length is None:
            raise ValueError("A stream does not tell its length: set `max_steps`")
        rows = math.ceil(mixture.length * args.num_train_epochs)
        args.max_steps = count_steps(mixture.length, args)
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
        collator.features = FeatureCache(Path(feature_cache), tower, processor, "bf16" if args.bf16 else "")
        collator.features.watch(tower)
    seed = args.seed if args.data_seed is None else args.data_seed
    stream = RowStream(mixture, seed, shuffle_buffer_size, args.process_index, args.world_size)
    loader = StreamLoader(
        stream, collator, args.train_batch_size, args.dataloader_num_workers, args.dataloader_prefetch_factor
    )
    set_seed(args.seed)  # TRL makes the adapter before it sets the seed, up to 1.14
    trainer_class = PllavaDPOTrainer if preference else PllavaSFTTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=mixture.columns(),
        processing_class=processor,
        peft_config=peft_config,
        loader=loader,
        sources=sources or [],
        rows=rows,
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


def _place_name(process_index: int | str) -> str:
    return f"data_state_{process_index}.json"


def _gradient(weight: nn.Parameter) -> torch.Tensor | None:
    return weight.grad
