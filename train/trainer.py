"""
TRL's trainers for video: rows are streamed and decoded by our loader; LoRA on the text model and the projector are
trained, and the vision tower is frozen.
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
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ..adapters import plain_model
from ..data.mixture import Mixture, as_mixture
from ..data.sources import Source
from .arguments import global_batch_size
from .loader.collator import IGNORE_INDEX, PreferenceCollator, VideoChatCollator
from .loader.feature_cache import FeatureCache
from .loader.skipped import SkippedExamples
from .loader.stream import RowStream
from .loader.stream_loader import StreamLoader
from .refused_options import check_options
from .stream_trainer import StreamingMixin


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
) -> "PllavaSFTTrainer | PllavaDPOTrainer":
    """
    Build a trainer over conversations about videos and images, or, with a `DPOConfig`, over preferences.

    Args:
        train_dataset: Rows of `messages`, with `videos` and `images` (see [`VideoChatCollator`]), undecoded; for a
            `DPOConfig` also with `chosen` and `rejected`. A `Dataset` is shuffled as a whole, differently in each
            epoch, and its length gives the number of steps; an `IterableDataset` needs `args.max_steps`. A [`Mixture`]
            comes from [`load_sources`].
        args: Options that cannot be followed on a stream of videos are refused (see [`check_options`]). The
            assistant's words are learned. `ddp_find_unused_parameters` is off by default: each trained weight has a
            gradient in every step. With `dataloader_num_workers` above its default of 0, a clip that takes more than
            three minutes is skipped. There is no timeout without workers, nor in evaluations, which use
            transformers' own loader.
        peft_config: The adapter to train, with the vision tower frozen; without it the whole model is trained.
        sampling: How frames are sampled in training: "random", "uniform", "middle" or "start".
        shuffle_buffer_size: Rows that are shuffled together if there are too many for all (see [`RowStream`]).
        max_unreadable: The run stops when clearly more of the last thousand examples cannot be read, which is checked
            when figures are logged, or too many in a row (see [`SkippedExamples`]). Skipped examples are listed in
            `_skipped.jsonl` in the output directory, which is not pushed; so are those of evaluations, which never
            stop a run.
        feature_cache: Directory for the vision tower's features of each clip (see [`FeatureCache`]), 18.9 MB a clip at
            7B. From the second epoch on, they are read instead of the clip.
        feature_cache_size: Size limit of that directory; further clips are decoded in every epoch.
        sources: Where the rows come from, for the card.
        trainer_kwargs: For TRL's trainer: `eval_dataset`, with rows like those of `train_dataset`, whose frames are
            sampled uniformly; `compute_metrics`, `preprocess_logits_for_metrics`, `callbacks`, `optimizers`. And
            `base_model` of [`PickleFreeMixin`].

    Raises:
        ValueError: if the number of steps is not known, or options contradict each other.
    """
    is_preference = isinstance(args, DPOConfig)
    check_options(args)
    args = copy(args)  # the caller's stays as it is
    mixture, rows = as_mixture(train_dataset), None
    if args.max_steps < 0:
        if mixture.length is None:
            raise ValueError("The length of a stream is not known: set `max_steps`")
        rows = math.ceil(mixture.length * args.num_train_epochs)
        # The last step is filled from the next epoch
        args.max_steps = math.ceil(mixture.length * args.num_train_epochs / global_batch_size(args))
    args.remove_unused_columns = False
    args.ignore_data_skip = True  # a resumed stream starts at its cursor
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    if not is_preference:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
    if peft_config is not None:
        model.model.vision_tower.requires_grad_(False)

    skipped_file = Path(args.output_dir) / "_skipped.jsonl"
    collator_class = PreferenceCollator if is_preference else VideoChatCollator
    collator = collator_class(processor, sampling, args.max_length, SkippedExamples(skipped_file, max_unreadable))
    eval_collator = replace(
        collator,
        sampling="uniform" if sampling == "random" else sampling,
        skipped=SkippedExamples(skipped_file, max_unreadable=None),
    )
    if feature_cache:
        plain = plain_model(model).model
        if is_preference or any(weight.requires_grad for weight in plain.vision_tower.parameters()):
            raise ValueError("`feature_cache` is for supervised fine-tuning with a frozen tower: pass a `peft_config`")
        autocast, max_bytes = "bf16" if args.bf16 else "", convert_file_size_to_int(feature_cache_size)
        collator.features = FeatureCache(Path(feature_cache), plain, processor, autocast, max_bytes, args.world_size)
        collator.features.attach(plain)
    seed = args.seed if args.data_seed is None else args.data_seed
    stream = RowStream(mixture, seed, shuffle_buffer_size, args.process_index, args.world_size)
    loader = StreamLoader(
        stream,
        collator,
        args.train_batch_size,
        args.dataloader_num_workers,
        args.dataloader_prefetch_factor,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )
    trainer = (PllavaDPOTrainer if is_preference else PllavaSFTTrainer)(
        model=model,
        args=args,
        data_collator=eval_collator,  # training batches come from the loader
        train_dataset=mixture.columns(),
        processing_class=processor,
        peft_config=peft_config,
        loader=loader,
        sources=sources or [],
        rows=rows,
        **trainer_kwargs,
    )
    if trainer.optimizer is not None:
        weights = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
        if not any(weight.requires_grad for weight in weights):
            raise ValueError(
                "The optimizer has none of the trained weights, which belong to the adapter that is made here: make "
                "the adapter with `peft.get_peft_model` before the optimizer, and leave out `peft_config`"
            )
    if args.bf16 and not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:
        for weight in trainer.model.parameters():  # bfloat16 has too few bits for AdamW's small steps
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    return trainer


class PllavaSFTTrainer(StreamingMixin, SFTTrainer):
    """TRL's `SFTTrainer` on a stream of videos; logs the loss of each source as `loss/NAME`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._label_counts: list[int] | None = None  # of the rows in this trainer's step; others may train the model
        self._labelled_positions = LabelledPositions(plain_model(self.model).base_model)
        self.model.register_forward_hook(self._keep_losses)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        labels = inputs["labels"]
        self._label_counts = (labels[:, 1:] != IGNORE_INDEX).sum(-1).tolist()
        inputs["shift_labels"] = self._labelled_positions.select(labels)
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._label_counts = None

    def _keep_losses(self, module: nn.Module, args: Any, output: Any) -> None:
        # A forward hook, since TRL's `compute_loss` does not return the losses of the tokens
        if self._label_counts is not None and getattr(output, "log_probs", None) is not None:
            rows = output.log_probs.detach().flatten().float().split(self._label_counts)
            for source, row in zip(self._batch["source"], rows, strict=True):
                self._losses[source].append(torch.stack([-row.sum(), row.new_tensor(len(row))]))

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple:
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if (inputs["labels"] == IGNORE_INDEX).all():  # nothing in the batch could be read: no loss, where TRL gives 0
            loss = torch.full_like(loss, torch.nan)
        return loss, logits, labels

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and "loss" in logs:
            local = {source: torch.stack(losses).sum(0) for source, losses in self._losses.items()}
            self._losses.clear()
            total = defaultdict(lambda: torch.zeros(2))
            for losses in gather_object([{source: loss.tolist() for source, loss in local.items()}]):
                for source, loss in losses.items():
                    total[source] += torch.tensor(loss)
            logs |= {f"loss/{source}": float(loss / count) for source, (loss, count) in sorted(total.items())}
        super().log(logs, start_time)


class PllavaDPOTrainer(StreamingMixin, DPOTrainer):
    """TRL's `DPOTrainer` on a stream of videos."""

    def _prepare_dataset(self, dataset: IterableDataset, *args: Any, **kwargs: Any) -> IterableDataset:
        # TRL would tokenize a dataset without a column "images". `DPOConfig` has no `skip_prepare_dataset`.
        return dataset


class LabelledPositions:
    """
    Reduces the hidden states that reach the language model's head to those whose next token has a label. TRL's LM head
    does so on GPUs only; it takes the labels that are left as `shift_labels`.

    Args:
        backbone: The model without its head.
    """

    def __init__(self, backbone: nn.Module):
        self._is_labelled: torch.BoolTensor | None = None
        backbone.register_forward_hook(self._select_states)

    def select(self, labels: torch.LongTensor) -> torch.LongTensor:
        """
        Set the positions for the next forward pass.

        Args:
            labels: `(batch, sequence)`, -100 where nothing is learned.

        Returns:
            `shift_labels`, `(1, labelled)`, for the hidden states `(1, labelled, D)` of that pass.
        """
        shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        self._is_labelled = shifted != IGNORE_INDEX
        return shifted[self._is_labelled][None]

    def _select_states(self, module: nn.Module, args: Any, output: BaseModelOutputWithPast) -> None:
        if self._is_labelled is not None:
            output.last_hidden_state = output.last_hidden_state[self._is_labelled][None]
            self._is_labelled = None
