"""What a run shows of itself: how often it went through the data, and how far it is."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from torch import nn
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .loader.stream import StreamLoader


class EpochCallback(TrainerCallback):
    """
    Sets `epoch`, as it is logged: how often the data were gone through. transformers takes the whole run for one epoch
    where data are streamed.

    Args:
        rows: How many rows an epoch has; without it, whole epochs are counted.
    """

    def __init__(self, loader: StreamLoader, rows: int | None):
        self.loader, self.rows = loader, rows

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # What this process has passed on its way through all rows; the others are in the same round
        passed = math.ceil(self.loader.place["position"] / args.world_size) * args.world_size
        state.epoch = passed / self.rows if self.rows else float(self.loader.place["epoch"])


class StreamProgressCallback(ProgressCallback):
    """transformers' bar, with the number of examples and tokens, and a time left that holds for resumed runs, too."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.current_step = state.global_step
        self.shown: dict[str, str] = {}
        if self.training_bar is not None:
            self.training_bar.initial = self.training_bar.n = state.global_step
            self.training_bar.refresh()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            self.shown["examples"] = f"{state.global_step * global_batch_size(args):,}"
            self.training_bar.set_postfix(self.shown, refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and "tokens_per_second" in logs:
            self.shown["tokens"] = f"{int(logs['num_tokens']):,}"
            self.shown["tokens/s"] = f"{logs['tokens_per_second']:,.0f}"
            self.training_bar.set_postfix(self.shown)
        super().on_log(args, state, control, logs, **kwargs)


def global_batch_size(args: transformers.TrainingArguments) -> int:
    """Examples in an optimiser step, of all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


GROUPS = {"lora": "lora_", "projector": "multi_modal_projector"}  # of the trained weights, by what their names have


class Throughput:
    """Of the training since it was read last; evaluations in between are not counted."""

    def __init__(self, loader: StreamLoader):
        self.loader, self.tokens = loader, 0
        self._began, self._waited = time.perf_counter(), loader.waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def read(self, world_size: int) -> dict[str, float]:
        """As they are logged; all processes take part (see [`StreamingMixin`])."""
        now = time.perf_counter()
        local = {"tokens": self.tokens, "waited": self.loader.waited - self._waited}
        total = defaultdict(float)
        for figures in gather_object([{**local, **self.loader.skipped.state_dict()}]):
            for name, value in figures.items():
                total[name] += value
        self.loader.skipped.check(int(total["seen"]), int(total["unreadable"]))
        seconds = now - self._began
        self.tokens, self._began, self._waited = 0, now, self.loader.waited
        return {
            "data_wait": total["waited"] / seconds / world_size,
            "tokens_per_second": total["tokens"] / seconds,
            **{f"skipped/{name}": int(total[name]) for name in ("unreadable", "too_long", "lost_turns")},
        }


class GradientNorms(TrainerCallback):
    """Notes the norms of the gradients of each of `GROUPS`, before clipping, in the steps that are logged."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.norms: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.is_deepspeed_enabled:
            # Its engine clips, steps and frees the gradients at the end of accelerate's `backward`
            engine = self.trainer.model_wrapped
            step = engine.step

            def note_and_step(*args: Any, **kwargs: Any) -> Any:
                self.note()
                return step(*args, **kwargs)

            engine.step = note_and_step

    def note(self) -> None:
        state = self.trainer.state
        step = state.global_step + 1
        if step % state.logging_steps == 0 or (step == 1 and self.trainer.args.logging_first_step):
            self.norms = {f"grad_norm/{group}": self._norm(part) for group, part in GROUPS.items()}

    def _norm(self, part: str) -> float:
        if self.trainer.is_deepspeed_enabled:
            from deepspeed.utils import safe_get_full_grad as gradient
        else:
            gradient = _gradient
        weights = [weight for name, weight in self.trainer.model.named_parameters() if part in name]
        gradients = [gradient(weight) for weight in weights if weight.requires_grad]
        norm = nn.utils.get_total_norm([grad for grad in gradients if grad is not None])
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _gradient(weight: nn.Parameter) -> torch.Tensor | None:
    return weight.grad
