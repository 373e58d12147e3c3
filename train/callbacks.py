"""What a run shows of itself: how often it went through the data, and how far it is."""

import math
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .card import global_batch_size
from .stream import StreamLoader


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
