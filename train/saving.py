"""What a trainer saves, uploads and goes on from: checkpoints on the disk, and no pickles on the Hub."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..files import is_disk_full

logger = logging.getLogger(__name__)
MODEL_FILES = ["*.safetensors", "*.json", "*.py", "*.jinja", "*.md", "*.model", "*.txt"]  # of a checkpoint
OF_THE_RUN = [TRAINER_STATE_NAME, "data_state_*"]  # what only a resumed run reads


class PickleFreeMixin:
    """
    For any `Trainer` of transformers' or TRL's (`class MyTrainer(PickleFreeMixin, Trainer)`): its arguments are saved
    as `training_args.json` in place of a pickle, and what it pushes to the Hub, at its end or with
    `hub_strategy="every_save"`, has no pickle. The states of optimizer and random generators, which transformers
    writes as pickles, stay on the disk.

    Raises:
        ValueError: if `hub_strategy` asks for an upload of these.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_hub_strategy(self.args)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            directory = Path(output_dir or self.args.output_dir)
            (directory / TRAINING_ARGS_NAME).unlink()
            (directory / "training_args.json").write_text(self.args.to_json_string(), encoding="utf-8")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # transformers writes the pickle of its arguments here, too, and uploads it in the same breath
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        unfinished = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if unfinished and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        job = HfApi().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=checkpoint_folder,
            commit_message=f"Training in progress, step {self.state.global_step}",
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            allow_patterns=MODEL_FILES,
            ignore_patterns=OF_THE_RUN,
            run_as_future=True,
        )
        job.add_done_callback(_report_failure)
        self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if unfinished else ()), job])


def _report_failure(job: Future) -> None:
    if error := job.exception():
        logger.warning("A checkpoint could not be pushed to the Hub; training goes on. %s", error)


def check_hub_strategy(args: TrainingArguments) -> None:
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value} uploads the states of optimizer and random generators, which are "
            "pickles; `every_save` uploads the model at each save, `end` at the end"
        )


# --- checkpoints -----------------------------------------------------------------------------------------------------


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end, if there is one."""
    return next((checkpoint for checkpoint in reversed(checkpoints(output_dir)) if _is_complete(checkpoint)), None)


def checkpoints(output_dir: Path) -> list[Path]:
    """All there are, by their steps; folders with other names, as `checkpoint-best`, are none."""
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output_dir.glob("*/")}
    return sorted((path for path in found if found[path]), key=lambda path: int(found[path][1]))


def steps_done(checkpoint: Path) -> int:
    """
    Raises:
        ValueError: if it is not there, or was not written to its end.
    """
    if not _is_complete(checkpoint):
        raise ValueError(f"{checkpoint}: there is no checkpoint here that was written to its end")
    return json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]


def check_output_dir(output_dir: Path, resume_from: str | bool | None = None) -> None:
    """
    Args:
        resume_from: The checkpoint that the run goes on from, `True` for the last one of `output_dir`.

    Raises:
        ValueError: if it has the checkpoints or the weights of another run, which this one would mix with its own.
    """
    if resume_from is True or (resume_from and Path(resume_from).resolve().parent == output_dir.resolve()):
        return
    if found := checkpoints(output_dir):
        raise ValueError(
            f"{output_dir} has the checkpoints of another run, the last of them {found[-1].name}: go on with it "
            "(--resume_from_checkpoint true), remove it, or name another --output_dir"
        )
    if found := sorted(output_dir.glob("*.safetensors")):
        raise ValueError(
            f"{output_dir} has the weights of another run, {found[0].name}: remove it, or name another --output_dir"
        )


def _is_complete(checkpoint: Path) -> bool:
    # The last file that transformers writes
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def said_if_disk_is_full(output_dir: str) -> Iterator[None]:
    """Around what writes into `output_dir`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        kept = last_checkpoint(Path(output_dir))
        left = f"{kept} is whole: make room, and go on with --resume_from_checkpoint true"
        sys.exit(f"Error: No room on the disk for {output_dir}. {left if kept else 'No checkpoint of it is whole.'}")
