"""What the SFT and DPO trainers share: streamed batches, checkpoints that resume the stream, and logged figures."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.sources import Source
from .arguments import global_batch_size
from .callbacks import EpochCallback, GradientNormCallback, StreamProgressCallback, Throughput
from .loader.stream_loader import StreamLoader, redistribute
from .saving import PickleFreeMixin, check_output_dir, last_checkpoint, steps_done


class StreamingMixin(PickleFreeMixin):
    """
    A mixin for trainers of transformers and TRL: batches come from a [`StreamLoader`], whose cursor is saved in the
    checkpoints. Adds to the logs:

    - `data_wait`: share of the time in which the next batch was not ready;
    - `tokens_per_second`: over all processes, including visual tokens;
    - `skipped/unreadable`, `skipped/too_long`, `skipped/lost_turns`: over all processes, since the start;
    - `grad_norm/lora`, `grad_norm/projector`: before clipping.

    Args:
        sources: Of the training data, for the card.
        rows: Length of the run in rows, if epochs give it: a run that resumes with another batch size keeps it.
    """

    def __init__(self, *args: Any, loader: StreamLoader, sources: list[Source], rows: int | None, **kwargs: Any):
        self.loader, self.sources, self.rows = loader, sources, rows
        self._resumed_from = {"step": 0, "examples": 0}
        super().__init__(*args, **kwargs)
        self.throughput, self.gradient_norms = Throughput(loader), GradientNormCallback(self)
        self._is_done_already = False
        self.add_callback(self.gradient_norms)
        self.add_callback(EpochCallback(loader))
        if self.pop_callback(ProgressCallback):
            self.add_callback(StreamProgressCallback)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """
        Like `Trainer.train`; `resume_from_checkpoint=True` is the last complete checkpoint in the output directory.

        Raises:
            ValueError: if there is none, or if the output directory has checkpoints or weights of another run.
        """
        output_dir = Path(self.args.output_dir)
        if self.state.global_step == 0:
            check_output_dir(output_dir, resume_from_checkpoint)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"{output_dir} has no checkpoint to resume from")
        if resume_from_checkpoint:
            steps = steps_done(Path(resume_from_checkpoint))
            self._load_data_state(Path(resume_from_checkpoint))
            self.accelerator.print(f"Resuming from {resume_from_checkpoint}: step {steps} of {self.args.max_steps}")
        return super().train(str(resume_from_checkpoint) if resume_from_checkpoint else None, **kwargs)

    def _load_data_state(self, checkpoint: Path) -> None:
        rank, files = self.args.process_index, checkpoint.glob(_data_state_file("*"))
        states = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
        own = states.get(_data_state_file(0)) or states.get(_data_state_file(rank))
        if own is None:
            raise ValueError(f"{checkpoint} has no {_data_state_file(rank)}: it was saved by another trainer")
        world_size = own["world_size"]
        is_same_size = world_size == self.args.world_size
        needed = [_data_state_file(other) for other in ([rank] if is_same_size else range(world_size))]
        if missing := ", ".join(name for name in needed if name not in states):
            raise ValueError(f"{checkpoint} lacks files that were saved on other machines. Copy there: {missing}")
        if not is_same_size and (self.loader.stream.by_shards or own["loader"]["place"]["by_shards"]):
            raise ValueError(
                f"{checkpoint} was saved by {world_size} processes, each with its own shards of the data, and can be "
                f"resumed only by as many; got {self.args.world_size}"
            )
        loader_states = [states[name]["loader"] for name in needed]
        self.loader.load_state_dict(loader_states[0] if is_same_size else redistribute(loader_states, rank))
        self._resumed_from, self._total_train_tokens = own, own["num_tokens"]
        if self.rows is not None:  # with another batch size, the remaining rows take another number of steps
            left = self.rows - own["examples"]
            self.args.max_steps = own["step"] + math.ceil(left / global_batch_size(self.args))

    def get_train_dataloader(self) -> StreamLoader:
        # Not prepared by accelerate, which would distribute batches that are already this process' own
        return self.loader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A finished run that is resumed only saves: transformers would take a step before it compares with `max_steps`
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self._is_done_already = self.control.should_training_stop = True

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self.throughput.tokens += int(inputs["attention_mask"].sum())
        self._batch = {name: inputs.pop(name) for name in ("source", "id", "feature_keys")}
        if (cache := self.loader.collator.features) is not None:
            cache.expect(self._batch["feature_keys"])
        inputs = self.loader.collator.to_device(inputs, self.args.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self.is_deepspeed_enabled:
            self.gradient_norms.update()
        return super()._clip_grad_norm(model)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs and self._is_done_already:  # the mean over no step, 0
            return
        if self.model.training and "loss" in logs:
            logs |= self.throughput.read(self.args.world_size) | self.gradient_norms.norms
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Written before the rest: a checkpoint counts as complete when transformers has written its own state
        directory = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        directory.mkdir(parents=True, exist_ok=True)
        new_steps = self.state.global_step - self._resumed_from["step"]
        state = {
            "world_size": self.args.world_size,
            "step": self.state.global_step,
            "examples": self._resumed_from["examples"] + new_steps * global_batch_size(self.args),
            "loader": self.loader.state_dict(),
            "num_tokens": getattr(self, "_total_train_tokens", 0),
        }
        (directory / _data_state_file(self.args.process_index)).write_text(json.dumps(state), encoding="utf-8")
        super()._save_checkpoint(model, trial)

    def card_facts(self) -> dict[str, Any]:
        data = [
            {"name": each.title, "repo_id": None if each.files else each.path, "license": each.license}
            for each in self.sources
        ]
        skipped = {name: int(count) for name, count in self.loader.skipped.state_dict().items()}
        return {"sampling": self.loader.collator.sampling, "data": data, "skipped": skipped}


def _data_state_file(rank: int | str) -> str:
    return f"data_state_{rank}.json"
