"""
TRL's trainers, set up for video: rows are streamed and decoded by our loader, LoRA on the text model and the projector
are trained, the tower is frozen.
"""

import math
from collections import defaultdict
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from datasets.utils.py_utils import convert_file_size_to_int
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ..data.mixture import Mixture, as_mixture
from ..data.sources import Source
from .arguments import check_options
from .callbacks import global_batch_size
from .loader.collator import IGNORE_INDEX, PreferenceCollator, VideoChatCollator
from .loader.feature_cache import FeatureCache
from .loader.skipped import SkippedExamples
from .loader.stream import RowStream, StreamLoader
from .stream_trainer import StreamingMixin


class LabelledPositions:
    """
    Cuts the hidden states that a language model's head gets down to those whose next token is labelled.

    TRL's LM head does so on GPUs only; it takes the labels of what is left as `shift_labels`.

    Args:
        backbone: The model without its head.
    """

    def __init__(self, backbone: nn.Module):
        self._positions: torch.BoolTensor | None = None
        backbone.register_forward_hook(self._select)

    def select(self, labels: torch.LongTensor) -> torch.LongTensor:
        """
        For the next forward pass: `labels` `(batch, sequence)`, -100 where nothing is learned, -> the `shift_labels`
        `(1, labelled)` of the hidden states `(1, labelled, D)` that it will give.
        """
        following = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        self._positions = following != IGNORE_INDEX
        return following[self._positions][None]

    def _select(self, module: nn.Module, args: Any, output: BaseModelOutputWithPast) -> None:
        if self._positions is not None:
            output.last_hidden_state = output.last_hidden_state[self._positions][None]
            self._positions = None


class PllavaSFTTrainer(StreamingMixin, SFTTrainer):
    """TRL's `SFTTrainer` on a stream of videos; logs the loss of each source as `loss/NAME`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._labelled = LabelledPositions(plain_model(self.model).base_model)
        self.model.register_forward_hook(self._note_losses)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        labels = inputs["labels"]
        self._counts = (labels[:, 1:] != IGNORE_INDEX).sum(-1).tolist()
        inputs["shift_labels"] = self._labelled.select(labels)
        return super().training_step(model, inputs, num_items_in_batch)

    def _note_losses(self, module: nn.Module, args: Any, output: Any) -> None:
        # `compute_loss` keeps the tokens' losses to itself: they are read where the model gives them
        if self.model.training and getattr(output, "log_probs", None) is not None:
            rows = output.log_probs.detach().flatten().float().split(self._counts)
            for source, row in zip(self._batch["source"], rows, strict=True):
                self._losses[source].append(torch.stack([-row.sum(), row.new_tensor(len(row))]))

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple:
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if (inputs["labels"] == IGNORE_INDEX).all():  # nothing of the batch could be read: it has no loss, TRL says 0
            loss = torch.full_like(loss, torch.nan)
        return loss, logits, labels

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
    feature_cache_size: str = "200GB",
    sources: list[Source] | None = None,
    **trainer_kwargs: Any,
) -> PllavaSFTTrainer | PllavaDPOTrainer:
    """
    A trainer over conversations about videos and images, or, with a `DPOConfig`, over preferences.

    Args:
        train_dataset: Rows of `messages`, with `videos` and `images` (see [`VideoChatCollator`]), undecoded; for a
            `DPOConfig` with `chosen` and `rejected`, too. A `Dataset` is shuffled as a whole, anew each epoch, and its
            length gives the number of steps; of an `IterableDataset`, `args.max_steps` does. A [`Mixture`] is what
            [`load_sources`] gives.
        args: What cannot be done on a stream of videos is refused (see `options.py`). What the assistant says is
            learned. `ddp_find_unused_parameters` is off by default: each trained weight has a gradient in every step.
            With `dataloader_num_workers` above its default of 0, a clip that takes more than three minutes is given
            up; without workers nothing limits that time, nor in evaluations, which transformers' own loader reads for.
        peft_config: The adapter to train (then the vision tower is frozen); without one the whole model is trained.
        sampling: How the collator draws frames, "random" or "uniform".
        shuffle_buffer_size: Rows that are shuffled together where there are too many for all (see [`RowStream`]).
        max_unreadable: The run stops when clearly more of the last thousand examples cannot be read, which is looked
            at when figures are logged, or so many in a row that it is no chance (see [`SkippedExamples`]). What is
            left out is listed in `_skipped.jsonl` in the output directory, which is not pushed; what an evaluation
            cannot read, too, but it stops no run.
        feature_cache: Directory for the vision tower's features of each clip (see [`FeatureCache`]); from the second
            epoch they are read in place of the clip. They take 18.9 MB a clip at 7B.
        feature_cache_size: What that directory may hold; further clips are decoded in every epoch.
        sources: Where the rows come from, for the card.
        trainer_kwargs: As TRL's trainer takes them: `eval_dataset`, with rows as in `train_dataset`, of whose clips
            frames at equal distances are taken; `compute_metrics`, `preprocess_logits_for_metrics`, `callbacks`,
            `optimizers`.

    Raises:
        ValueError: if the number of steps is not known, or what is asked for does not go together.
    """
    preference = isinstance(args, DPOConfig)
    check_options(args)
    args = copy(args)  # what is set below is for this trainer
    mixture, rows = as_mixture(train_dataset), None
    if args.max_steps < 0:
        if mixture.length is None:
            raise ValueError("A stream does not tell its length: set `max_steps`")
        rows = math.ceil(mixture.length * args.num_train_epochs)
        args.max_steps = count_steps(mixture.length, args)
    args.remove_unused_columns = False
    args.ignore_data_skip = True  # the stream itself goes on where it stood, and decodes nothing that was seen
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    if not preference:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
    if peft_config is not None:
        model.model.vision_tower.requires_grad_(False)
    skipped_file = Path(args.output_dir) / "_skipped.jsonl"
    skipped, eval_skipped = (SkippedExamples(skipped_file, limit) for limit in (max_unreadable, None))
    collator = (PreferenceCollator if preference else VideoChatCollator)(processor, sampling, args.max_length, skipped)
    eval_sampling = "uniform" if sampling == "random" else sampling
    eval_collator = replace(collator, sampling=eval_sampling, skipped=eval_skipped)
    if feature_cache:
        tower = plain_model(model).model.vision_tower
        if preference or any(weight.requires_grad for weight in tower.parameters()):
            raise ValueError("`feature_cache` is for supervised fine-tuning with a frozen tower: pass a `peft_config`")
        arithmetic, max_bytes = "bf16" if args.bf16 else "", convert_file_size_to_int(feature_cache_size)
        collator.features = FeatureCache(Path(feature_cache), tower, processor, arithmetic, max_bytes, args.world_size)
        collator.features.attach(plain_model(model).model)
    seed = args.seed if args.data_seed is None else args.data_seed
    stream = RowStream(mixture, seed, shuffle_buffer_size, args.process_index, args.world_size)
    loader = StreamLoader(
        stream, collator, args.train_batch_size, args.dataloader_num_workers, args.dataloader_prefetch_factor
    )
    trainer_class = PllavaDPOTrainer if preference else PllavaSFTTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        data_collator=eval_collator,  # what is trained on comes from the loader
        train_dataset=mixture.columns(),
        processing_class=processor,
        peft_config=peft_config,
        loader=loader,
        sources=sources or [],
        rows=rows,
        epoch_rows=mixture.length,
        **trainer_kwargs,
    )
    if trainer.optimizer is not None:
        given = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
        if not any(weight.requires_grad for weight in given):
            raise ValueError(
                "The optimizer has none of the weights that are trained, those of the adapter that is made here: make "
                "that with `peft.get_peft_model` before the optimizer, and leave `peft_config` out"
            )
    if args.bf16 and not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:
        for weight in trainer.model.parameters():  # AdamW's steps are lost in bfloat16's eight bits
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    return trainer


def count_steps(rows: int, args: TrainingArguments) -> int:
    """How many steps `args.num_train_epochs` over that many rows take; the last one is filled from the next epoch."""
    return math.ceil(rows * args.num_train_epochs / global_batch_size(args))


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model inside PEFT's, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
