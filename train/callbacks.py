"""What a run logs and shows about itself: epoch, throughput, gradient norms, and the progress bar."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from ..distributed import cores_per_process
from .arguments import global_batch_size
from .loader.stream_loader import StreamLoader

MAX_WAIT = 0.05  # share of a run's time that it may wait for data without advice
TRAINED_PARTS = {"lora": "lora_", "projector": "multi_modal_projector"}  # and a part of their weights' names


class EpochCallback(TrainerCallback):
    """
    Sets the `epoch` that is logged, in whole epochs if their length is not known. transformers takes the whole run for
    one epoch if the data are streamed.
    """

    def __init__(self, loader: StreamLoader):
        self.loader, self.rows = loader, loader.stream.mixture.length

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # This process' position among all rows, rounded up: the other processes are on the same round of rows
        position = math.ceil(self.loader.cursor["position"] / args.world_size) * args.world_size
        state.epoch = position / self.rows if self.rows else float(self.loader.cursor["epoch"])


class Throughput:
    """Measures training since the last call of `read`, without the evaluations in between."""

    def __init__(self, loader: StreamLoader):
        self.loader, self.tokens = loader, 0
        self.total_seconds = self.total_waited = 0.0  # after the first call of `read`; the mean of all processes
        self._is_started = False
        self._start, self._waited = time.perf_counter(), loader.waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self, world_size: int) -> dict[str, float]:
        """
        Return the figures of all processes, which have to call this together (see [`StreamingMixin`]).

        Raises:
            RuntimeError: if too many examples cannot be read (see [`SkippedExamples.check`]).
        """
        now = time.perf_counter()
        skipped = self.loader.skipped
        local = {"tokens": self.tokens, "waited": self.loader.waited - self._waited, **skipped.state_dict()}
        total = defaultdict(float)
        for figures in gather_object([local]):
            for name, value in figures.items():
                total[name] += value
        skipped.check(int(total["seen"]), int(total["unreadable"]))
        seconds, waited = now - self._start, total["waited"] / world_size
        if self._is_started:
            self.total_seconds, self.total_waited = self.total_seconds + seconds, self.total_waited + waited
        self._is_started = True
        self.tokens, self._start, self._waited = 0, now, self.loader.waited
        return {
            "data_wait": waited / seconds,
            "tokens_per_second": total["tokens"] / seconds,
            **{f"skipped/{name}": int(total[name]) for name in ("unreadable", "too_long", "lost_turns")},
        }

    def summary(self) -> str:
        """Return a line about the waits for data after the first log, with advice if they are long."""
        workers = self.loader.num_workers
        return describe_waits(self.total_waited, self.total_seconds, workers, cores_per_process())


def describe_waits(waited: float, seconds: float, workers: int, cores: int) -> str:
    """Say how long a run waited for data, and how many workers would be enough. `cores` are those of one process."""
    if not seconds:
        return "The run was too short to measure how long it waits for data."
    share = waited / seconds
    line = f"The model waited for data in {share:.0%} of {seconds:,.0f} s"
    if share < MAX_WAIT:
        return f"{line}."
    # With more workers, each decodes as fast as before; the rest of a step takes as long as before
    needed = math.ceil((workers or share) / max(1 - share, 1e-3))
    if needed <= cores:
        return f"{line}: raise `dataloader_num_workers` from {workers} to {needed}."
    if workers < cores:
        line += f": raise `dataloader_num_workers` from {workers} to {cores}, the number of cores"
    copies = "copies of the clips at the model's frame size, with a keyframe per second"
    return f"{line}. Decoding in time would take {needed} cores: make {copies}."


class GradientNormCallback(TrainerCallback):
    """Keeps the gradient norm of each of `TRAINED_PARTS`, before clipping, in the steps that are logged."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.norms: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.trainer.is_deepspeed_enabled:
            # DeepSpeed clips, steps and frees the gradients at the end of accelerate's `backward`
            engine = self.trainer.model_wrapped
            step = engine.step

            def update_and_step(*args: Any, **kwargs: Any) -> Any:
                self.update()
                return step(*args, **kwargs)

            engine.step = update_and_step

    def update(self) -> None:
        """Compute the norms, if this step is logged. Has to be called between backward pass and clipping."""
        state = self.trainer.state
        step = state.global_step + 1
        if step % state.logging_steps == 0 or (step == 1 and self.trainer.args.logging_first_step):
            self.norms = {f"grad_norm/{part}": self._norm(name) for part, name in TRAINED_PARTS.items()}

    def _norm(self, part_of_name: str) -> float:
        weights = [
            weight
            for name, weight in self.trainer.model.named_parameters()
            if part_of_name in name and weight.requires_grad
        ]
        if self.trainer.is_deepspeed_enabled:
            from deepspeed.utils import safe_get_full_grad

            gradients = [safe_get_full_grad(weight) for weight in weights]
        else:
            gradients = [weight.grad for weight in weights]
        norm: torch.Tensor = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # FSDP's are sharded


class StreamProgressCallback(ProgressCallback):
    """transformers' progress bar, with the number of examples and tokens. In a resumed run it starts at the step."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.current_step = state.global_step
        self.figures: dict[str, str] = {}
        if self.training_bar is not None:
            self.training_bar.initial = self.training_bar.n = state.global_step
            self.training_bar.refresh()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            self.figures["examples"] = f"{state.global_step * global_batch_size(args):,}"
            self.training_bar.set_postfix(self.figures, refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if self.training_bar is not None and "tokens_per_second" in logs:
            self.figures["tokens"] = f"{int(logs['num_tokens']):,}"
            self.figures["tokens/s"] = f"{logs['tokens_per_second']:,.0f}"
            self.training_bar.set_postfix(self.figures)
        super().on_log(args, state, control, logs, **kwargs)
