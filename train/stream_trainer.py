"""What a trainer of transformers' needs for streams of videos."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.sources import Source
from ..hub_cards.trained_model_card import build_trained_model_card
from .callbacks import EpochCallback, GradientNorms, StreamProgressCallback, Throughput, global_batch_size
from .loader.stream import StreamLoader, deal_anew
from .saving import PickleFreeMixin, check_output_dir, last_checkpoint, steps_done


class StreamingMixin(PickleFreeMixin):
    """
    What a trainer of transformers' needs for streams of videos: batches from a [`StreamLoader`], whose place is kept
    in the checkpoints, and figures about it in the logs:

    - `data_wait`: share of the time in which the next batch was not ready;
    - `tokens_per_second`: of all processes, visual tokens counted;
    - `skipped/unreadable`, `skipped/too_long`, `skipped/lost_turns`: of all processes, since the start;
    - `grad_norm/lora`, `grad_norm/projector`: before clipping.
    """

    def __init__(
        self,
        *args: Any,
        loader: StreamLoader,
        sources: list[Source],
        rows: int | None,
        epoch_rows: int | None,
        **kwargs: Any,
    ):
        self.loader, self.sources, self.rows = loader, sources, rows
        self._begun = {"step": 0, "examples": 0}
        super().__init__(*args, **kwargs)
        self.throughput, self.gradient_norms = Throughput(loader), GradientNorms(self)
        self._nothing_left = False
        self.add_callback(self.gradient_norms)
        self.add_callback(EpochCallback(loader, epoch_rows))
        if self.pop_callback(ProgressCallback):
            self.add_callback(StreamProgressCallback)

    def get_train_dataloader(self) -> StreamLoader:
        # Not prepared by accelerate: it would deal out batches that are dealt out already
        return self.loader

    # --- going on ---

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """
        As any trainer's; `resume_from_checkpoint=True` is the last checkpoint that was written to its end.

        Raises:
            ValueError: if there is none, or if the output directory has checkpoints or weights of another run.
        """
        output_dir = Path(self.args.output_dir)
        if self.state.global_step == 0:
            check_output_dir(output_dir, resume_from_checkpoint)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"{output_dir} has no checkpoint to go on from")
        if resume_from_checkpoint:
            steps = steps_done(Path(resume_from_checkpoint))
            self._load_place(Path(resume_from_checkpoint))
            self.accelerator.print(f"Going on from {resume_from_checkpoint}: step {steps} of {self.args.max_steps}")
        return super().train(str(resume_from_checkpoint) if resume_from_checkpoint else None, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed at its end, a run only saves: transformers looks whether it is done behind each step
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self._nothing_left = self.control.should_training_stop = True

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
            self._write_card(Path(self.args.output_dir))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_card(Path(output_dir or self.args.output_dir))  # in place of PEFT's

    def _write_card(self, directory: Path) -> None:
        card = build_trained_model_card(
            self,
            licenses=[(source.title, source.license) for source in self.sources],
            hub_datasets=[source.path for source in self.sources if not source.files],
            global_batch_size=global_batch_size(self.args),
        )
        card.save(directory / "README.md")

    # --- figures ---

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self.throughput.tokens += int(inputs["attention_mask"].sum())
        self._batch = {name: inputs.pop(name) for name in ("source", "id", "feature_keys")}
        if (cache := self.loader.collator.features) is not None:
            cache.expect(self._batch["feature_keys"])
        return super().training_step(model, inputs, num_items_in_batch)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self.is_deepspeed_enabled:
            self.gradient_norms.note()
        return super()._clip_grad_norm(model)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs and self._nothing_left:  # it would be 0, the mean over no step
            return
        if self.model.training and "loss" in logs:
            logs |= self.throughput.read(self.args.world_size) | self.gradient_norms.norms
        super().log(logs, start_time)


def _place_name(process_index: int | str) -> str:
    return f"data_state_{process_index}.json"
