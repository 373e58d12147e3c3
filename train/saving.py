"""Checkpoints: finding them, saving and uploading them without pickles, and running out of disk space."""

import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from ..adapters import plain_model
from ..files import is_disk_full
from ..hub_cards.cards.model_card import write_model_card
from ..hub_cards.cards.training_log import TrainingSummary
from ..hub_cards.staging import MODEL_FILES, RESUME_FILES
from ..hub_cards.uploading import explaining_errors
from ..origins import CARD, ModelSource
from .arguments import global_batch_size

logger = logging.get_logger(__name__)


class PickleFreeMixin:
    """
    A mixin for trainers of transformers and TRL, `class MyTrainer(PickleFreeMixin, Trainer)`, which makes what they
    save fit for the Hub:

    - No pickles: the arguments are saved as `training_args.json`. What is pushed, at the end or with
      `hub_strategy="every_save"`, has none: the states of the optimizer and the random generators, which transformers
      pickles, stay on the disk.
    - A card, with a summary of the training and its loss curve.
    - The base model by its id on the Hub, in the card and in an adapter's config, with its commit.

    Args:
        base_model: The id on the Hub of the model that training starts from, if that is a local folder.

    Raises:
        ValueError: if `hub_strategy` would upload these states.
    """

    def __init__(self, *args: Any, base_model: str | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_hub_strategy(self.args)
        self.base = name_base(self.model, base_model)

    def card_facts(self) -> dict[str, Any]:
        """Return what the card says of the data: arguments of [`TrainingSummary.of`]."""
        return {}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        card = directory / CARD
        text = card.read_text(encoding="utf-8") if card.exists() else ""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            card.write_text(text, encoding="utf-8")  # without what PEFT wrote there
            (directory / TRAINING_ARGS_NAME).unlink()
            (directory / "training_args.json").write_text(self.args.to_json_string(), encoding="utf-8")
            self._write_card(directory)
            if self.base.repo_id is None and hasattr(self.model, "peft_config"):
                logger.warning_once(
                    f"{directory} names its base model by a folder of this machine. For others, publish the base, and "
                    "then this adapter with `pllava push --base-model`; or name the base (`base_model`) when training"
                )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: each save writes the card, which transformers and TRL would replace."""

    def _write_card(self, directory: Path) -> None:
        batch_size = global_batch_size(self.args)
        TrainingSummary.of(self, self.base.to_dict(), batch_size, **self.card_facts()).save(directory)
        name = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name
        write_model_card(directory, name, self.base)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """
        As in transformers.

        Raises:
            OSError: if the Hub cannot be reached or refuses: the message says what to do.
        """
        with explaining_errors(self.args.hub_model_id or self.args.output_dir):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Replaces transformers' method, which also pickles and uploads the arguments
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
            ignore_patterns=RESUME_FILES,
            run_as_future=True,
        )
        job.add_done_callback(_warn_of_failed_push)
        self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if unfinished else ()), job])


def _warn_of_failed_push(job: Future) -> None:
    if error := job.exception():
        logger.warning("A checkpoint could not be pushed to the Hub; training continues. %s", error)


def name_base(model: PreTrainedModel | PeftModel, repo_id: str | None) -> ModelSource:
    """
    Return the model that training starts from. It is noted in an adapter's config, by its id on the Hub and its commit
    or by its absolute path, and in the config of a model that is trained whole.

    Args:
        repo_id: The id of a model that is in a folder.

    Raises:
        ValueError: if the model was loaded from another repository on the Hub.
    """
    config = plain_model(model).config
    if not config.name_or_path:  # a new model
        return ModelSource(repo_id)
    base = ModelSource.of(config.name_or_path, getattr(config, "_commit_hash", None))
    if base.repo_id and repo_id not in (None, base.repo_id):
        raise ValueError(f"The base model was loaded from {base.repo_id} on the Hub, but `base_model` is {repo_id}")
    base = replace(base, repo_id=base.repo_id or repo_id)
    for adapter in getattr(model, "peft_config", {}).values():
        adapter.base_model_name_or_path = base.repo_id or os.path.abspath(config.name_or_path)
        adapter.revision = base.revision
    if not hasattr(model, "peft_config"):
        config.origin = {"kind": "trained", "source": base.to_dict()}
    return base


def check_hub_strategy(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: if the states of the optimizer and the random generators would be uploaded.
    """
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value} uploads the states of optimizer and random generators, which are "
            "pickles; use `every_save` to upload the model at each save, or `end` to upload it at the end"
        )


# --- checkpoints -----------------------------------------------------------------------------------------------------


def last_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest complete checkpoint, if there is one."""
    return next((checkpoint for checkpoint in reversed(checkpoints(output_dir)) if _is_complete(checkpoint)), None)


def checkpoints(output_dir: Path) -> list[Path]:
    """Return all checkpoints, by step; folders with other names, such as `checkpoint-best`, are ignored."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output_dir.glob("*/")}
    return sorted((path for path in steps if steps[path]), key=lambda path: int(steps[path][1]))


def steps_done(checkpoint: Path) -> int:
    """
    Raises:
        ValueError: if the checkpoint does not exist, or is incomplete.
    """
    if not _is_complete(checkpoint):
        raise ValueError(f"{checkpoint} is not a complete checkpoint: resume from another one")
    return json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]


def check_output_dir(output_dir: Path, resume_from: str | bool | None = None) -> None:
    """
    Args:
        resume_from: The checkpoint that the run resumes from, `True` for the last one in `output_dir`.

    Raises:
        ValueError: if the directory has checkpoints or weights of another run, which would be mixed with this one's.
    """
    if resume_from is True or (resume_from and Path(resume_from).resolve().parent == output_dir.resolve()):
        return
    if others := checkpoints(output_dir):
        raise ValueError(
            f"{output_dir} has the checkpoints of another run, the last of them {others[-1].name}: resume that run "
            "(--resume_from_checkpoint true), remove them, or choose another --output_dir"
        )
    if others := sorted(output_dir.glob("*.safetensors")):
        raise ValueError(
            f"{output_dir} has the weights of another run, {others[0].name}: remove them, or choose another "
            "--output_dir"
        )


def _is_complete(checkpoint: Path) -> bool:
    try:  # transformers writes this file last
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def exit_if_disk_is_full(output_dir: str) -> Iterator[None]:
    """Exit with one line that names the last complete checkpoint if a write in the block fails for lack of space."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        checkpoint = last_checkpoint(Path(output_dir))
        advice = "No checkpoint is complete."
        if checkpoint:
            advice = f"{checkpoint} is complete: make room, and resume with --resume_from_checkpoint true"
        sys.exit(f"Error: No room on the disk for {output_dir}. {advice}")
