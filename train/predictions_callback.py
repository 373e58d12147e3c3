"""A table of what the model answers while it is trained."""

import importlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, is_deepspeed_zero3_enabled

from ..eval.benchmarks.benchmark import Benchmark
from ..eval.benchmarks.samples import Sample
from ..eval.controls_and_sweeps import PLAIN
from ..eval.models.local_model import LocalModel
from ..eval.scoring.score import score_answer
from ..eval.store import to_row
from .trainer import PllavaDPOTrainer, PllavaSFTTrainer

COLUMNS = ("step", "task", "question", "reference", "prediction", "correct", "score", "error")
WITH_TABLES = ("trackio", "wandb")  # modules with a `Table` and a `log`


class PredictionsCallback(TrainerCallback):
    """
    Asks a few questions of a benchmark every `steps` steps. The answers are logged as a table, `predictions`, to
    TensorBoard, trackio and wandb, whichever the run reports to; and where the benchmark has a rule for what an answer
    is worth, the mean of it as `eval_predictions_accuracy` or, of rules that give points, `eval_predictions_score`.

    Args:
        trainer: Whose model is asked; each process answers its share.
        benchmark: As `pllava.eval.load_benchmark` gives it.
        samples: The questions.
        steps: Between two tables; by default `eval_steps` of the trainer's arguments.

    Raises:
        ValueError: if the run reports to none of these places, no process has the whole model, or nothing says when.
    """

    def __init__(
        self,
        trainer: PllavaSFTTrainer | PllavaDPOTrainer,
        benchmark: Benchmark,
        samples: Sequence[Sample],
        steps: int | None = None,
    ):
        args = trainer.args
        if not {"tensorboard", *WITH_TABLES} & set(args.report_to):
            raise ValueError(f"A table of predictions goes to tensorboard, trackio or wandb; got {args.report_to=}")
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "Each process answers questions with the whole model, which FSDP and ZeRO-3 divide: leave the table "
                "of predictions out, or train with DDP or ZeRO-2"
            )
        self.trainer, self.benchmark, self.samples, self.steps = trainer, benchmark, samples, steps
        if not (steps or args.eval_steps):
            raise ValueError("Nothing says when the questions are asked: give `steps`, or set `eval_steps`")
        self.answerer = LocalModel(
            trainer.model,
            trainer.processing_class,
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % (self.steps or state.eval_steps):
            return
        with self.trainer.throughput.paused():
            self.trainer.model.eval()
            table = self._ask(state.global_step)
            if self.trainer.is_world_process_zero():
                self._log_table(table, state.global_step)
            should_log = control.should_log
            for name, logged in {"correct": "accuracy", "score": "score"}.items():
                if name in table:
                    self.trainer.log({f"eval_predictions_{logged}": float(table[name].mean())})
            control.should_log = should_log  # the step's own figures are still to come
            self.trainer.model.train()

    def _ask(self, step: int) -> pd.DataFrame:
        rows = []
        with self.trainer.accelerator.autocast():
            for _, answers in self.answerer.answers(
                self.benchmark, self.samples, [PLAIN], lambda *_: False, self._is_own_piece
            ):
                for sample, answer in answers:
                    scores = score_answer(self.benchmark, sample, answer)
                    rows.append({"step": step, **to_row(sample, answer, scores)})
        order = {sample.id: place for place, sample in enumerate(self.samples)}
        rows = sorted(gather_object(rows), key=lambda row: order[row["id"]])
        table = pd.DataFrame(rows)
        return table[[column for column in COLUMNS if column in table]]

    def _is_own_piece(self, piece: int) -> bool:
        return piece % self.trainer.args.world_size == self.trainer.args.process_index

    def _log_table(self, table: pd.DataFrame, step: int) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.tb_writer.add_text("predictions", _markdown(table), step)
        for name in {*WITH_TABLES} & {*self.trainer.args.report_to}:
            module = importlib.import_module(name)
            module.log({"predictions": module.Table(dataframe=table), "train/global_step": step})


def _markdown(table: pd.DataFrame) -> str:
    cells = table.astype(str).replace({r"\|": r"\\|", "\n": " "}, regex=True)
    lines = [table.columns, ["---"] * len(table.columns), *cells.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
