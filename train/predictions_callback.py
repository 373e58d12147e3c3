"""A table of the model's answers to a few questions, logged during training."""

import importlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, is_deepspeed_zero3_enabled

from ..eval.benchmarks.benchmark import Benchmark
from ..eval.benchmarks.samples import Sample
from ..eval.controls_and_sweeps import PLAIN
from ..eval.models.answerer import Work
from ..eval.models.local_model import LocalModel
from ..eval.scoring.score import score_answer
from ..eval.store import to_row
from .trainer import PllavaDPOTrainer, PllavaSFTTrainer

COLUMNS = ("step", "task", "question", "reference", "prediction", "correct", "score", "error")
TABLE_LOGGERS = ("trackio", "wandb")  # modules with `Table` and `log`


class PredictionsCallback(TrainerCallback):
    """
    Asks a few questions of a benchmark every `steps` steps. The answers are logged as a table, `predictions`, to
    TensorBoard, trackio and wandb, whichever the run reports to. If the benchmark scores single answers, their mean is
    logged as `eval_predictions_accuracy` or, for points, `eval_predictions_score`.

    Args:
        trainer: Its model answers; each process answers its share of the questions.
        steps: Between two tables; by default `eval_steps` of the trainer's arguments.

    Raises:
        ValueError: if the run reports to none of these loggers, no process has the whole model, or `steps` is missing.
    """

    def __init__(
        self,
        trainer: PllavaSFTTrainer | PllavaDPOTrainer,
        benchmark: Benchmark,
        samples: Sequence[Sample],
        steps: int | None = None,
    ):
        args = trainer.args
        if not {"tensorboard", *TABLE_LOGGERS} & set(args.report_to):
            raise ValueError(f"A table of predictions goes to tensorboard, trackio or wandb; got {args.report_to=}")
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "A table of predictions needs the whole model in each process, and FSDP and ZeRO-3 shard it: leave "
                "the table out, or train with DDP or ZeRO-2"
            )
        if not (steps or args.eval_steps):
            raise ValueError("Nothing says when the questions are asked: give `steps`, or set `eval_steps`")
        self.trainer, self.benchmark, self.samples, self.steps = trainer, benchmark, samples, steps
        self.model = LocalModel(
            trainer.model,
            trainer.processing_class,
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step % (self.steps or state.eval_steps):
            return
        with self.trainer.throughput.paused():
            self.trainer.model.eval()
            table = self._answer(state.global_step)
            if self.trainer.is_world_process_zero():
                self._log_table(table, state.global_step)
            should_log = control.should_log
            for column, name in {"correct": "accuracy", "score": "score"}.items():
                if column in table:
                    self.trainer.log({f"eval_predictions_{name}": float(table[column].mean())})
            control.should_log = should_log  # `log` clears it, before the figures of the step are logged
            self.trainer.model.train()

    def _answer(self, step: int) -> pd.DataFrame:
        world_size, rank = self.trainer.args.world_size, self.trainer.args.process_index
        rows = []
        with self.trainer.accelerator.autocast():
            work = Work(self.benchmark, self.samples, [PLAIN], claim=lambda piece: piece % world_size == rank)
            for _, answers in self.model.answers(work):
                for sample, answer in answers:
                    scores = score_answer(self.benchmark, sample, answer)
                    rows.append({"step": step, **to_row(sample, answer, scores)})
        order = {sample.id: index for index, sample in enumerate(self.samples)}
        table = pd.DataFrame(sorted(gather_object(rows), key=lambda row: order[row["id"]]))
        return table[[column for column in COLUMNS if column in table]]

    def _log_table(self, table: pd.DataFrame, step: int) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.tb_writer.add_text("predictions", _to_markdown(table), step)
        for name in {*TABLE_LOGGERS} & {*self.trainer.args.report_to}:
            module = importlib.import_module(name)
            module.log({"predictions": module.Table(dataframe=table), "train/global_step": step})


def _to_markdown(table: pd.DataFrame) -> str:
    cells = table.astype(str).replace({r"\|": r"\\|", "\n": " "}, regex=True)
    lines = [table.columns, ["---"] * len(table.columns), *cells.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
