"""The options of a training run: those of the command line, and those of transformers and TRL that are refused."""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from trl import DPOConfig, ModelConfig, SFTConfig, TrlParser

from ..adapters import LORA_TARGETS
from ..data.sources import find_file

DDP_TIMEOUT = 4 * 3600  # seconds; the default of 1,800 ends a run in which one process decodes or indexes for long
# TRL's names for options that the other commands of pllava have, too
TRL_NAMES = {"model": "model_name_or_path", "adapter": "adapter_name_or_path", "revision": "model_revision"}


class TrainingParser(TrlParser):
    """
    TRL's parser with all options of a training run. Recipes and command lines can use the names in `TRL_NAMES`, and
    `--config` also finds the recipes in this package.
    """

    def __init__(self, config_class: type[SFTConfig] | type[DPOConfig] = SFTConfig):
        super().__init__((ModelArguments, DataArguments, EvaluationArguments, config_class))
        self.set_defaults(ddp_timeout=DDP_TIMEOUT)

    def parse_args_and_config(self, args: Iterable[str] | None = None, **kwargs: Any) -> tuple[Any, ...]:
        args = list(sys.argv[1:] if args is None else args)
        if "--config" in args[:-1]:
            index = args.index("--config") + 1
            args[index] = str(find_file(args[index]))
        return super().parse_args_and_config(args, **kwargs)

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        for name, trl_name in TRL_NAMES.items():
            if name in config:
                value = config.pop(name)
                if config.setdefault(trl_name, value) != value:
                    raise ValueError(f"The recipe has {name}: {value} and {trl_name}: {config[trl_name]}; remove one")
        return super().set_defaults_with_config(**config)

    def error(self, message: str) -> NoReturn:
        """Exit with one line, without the usage: it has hundreds of options."""
        self.exit(2, f"Error: {' '.join(message.split())}\n")


class StoreOnce(argparse.Action):
    """Stores the value of an option that has several names; refuses two different values."""

    given: str | None = None

    def __call__(self, parser: Any, namespace: Any, value: str, option_string: str | None = None) -> None:
        if self.given not in (None, value):
            raise argparse.ArgumentError(self, f"these are names of one option; got {self.given!r} and {value!r}")
        self.given = value
        setattr(namespace, self.dest, value)


def _aliased(alias: str, help: str) -> Any:
    return HfArg(default=None, help=help, aliases=f"--{alias}", metadata={"action": StoreOnce})


@dataclass
class ModelArguments(ModelConfig):
    """TRL's model options, with the paper's adapter as the default."""

    model_name_or_path: str | None = _aliased(
        "model", "The model to start from: a directory, a Hub id or `nano`; by default the base of --adapter."
    )
    model_revision: str | None = _aliased(
        "revision", "The model's branch, tag or commit on the Hub; by default main, or the one in --adapter's config."
    )
    adapter_name_or_path: str | None = _aliased(
        "adapter",
        "An adapter to train further, instead of a new one; on the Hub also ORG/NAME@REVISION/FOLDER.",
    )
    base_model: str | None = HfArg(
        default=None, help="The Hub id of --model, if that is a folder: for the adapter's config and the card."
    )
    use_peft: bool = HfArg(
        default=True, help="Train LoRA and the projector; without it the whole model, including the vision tower."
    )
    lora_r: int = HfArg(default=128, help="LoRA's rank.")
    lora_alpha: int = HfArg(default=32, help="LoRA's strength during training; it can be changed afterwards.")
    lora_target_modules: list[str] = HfArg(
        default_factory=lambda: list(LORA_TARGETS), help="Linear layers of the text model: those of them that it has."
    )


@dataclass
class DataArguments:
    """The training data."""

    datasets: list[str] = HfArg(
        default_factory=list,
        help="Files, folders, Hub ids, or `.yaml` lists of these; recipes can add options to each.",
    )
    data_dir: str | None = HfArg(default=None, help="The folder that paths are relative to.")
    stopping_strategy: str = HfArg(
        default="all_exhausted_without_replacement",
        help="When an epoch of a mixture ends, as in `datasets.interleave_datasets`.",
    )
    shuffle_buffer_size: int = HfArg(
        default=4000, help="Rows of Parquet or WebDataset files that are shuffled together."
    )
    sampling: str = HfArg(default="random", help="How frames are sampled: random, uniform, middle or start.")
    max_unreadable: float = HfArg(default=0.2, help="The run stops if a larger share of examples cannot be read.")
    feature_cache: str | None = HfArg(
        default=None, help="Directory that caches the vision tower's features: 18.9 MB a clip at 7B."
    )
    feature_cache_size: str = HfArg(
        default="200GB", help="Size limit of that directory, such as 500MB or 2TB; then no more is kept."
    )


@dataclass
class EvaluationArguments:
    """Evaluation during training; TRL's options say when, and which checkpoint is kept."""

    eval_datasets: list[str] = HfArg(
        default_factory=list,
        help="Like `datasets`, for the loss (see `eval_strategy`); several are evaluated one by one.",
    )
    early_stopping_patience: int | None = HfArg(
        default=None, help="The run ends after this many evaluations without a better one."
    )
    prediction_benchmark: str | None = HfArg(
        default=None, help="A benchmark's name or YAML file: some of its questions are answered, for a table."
    )
    prediction_data: str | None = HfArg(default=None, help="The benchmark's files: a folder or a dataset on the Hub.")
    prediction_steps: int | None = HfArg(default=None, help="Steps between two tables; by default `eval_steps`.")
    num_predictions: int = HfArg(default=8, help="How many questions a table has.")


def global_batch_size(args: TrainingArguments) -> int:
    """Return the number of examples in an optimizer step, over all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def check_evaluation(eval_args: EvaluationArguments, args: SFTConfig | DPOConfig) -> None:
    """
    Raises:
        ValueError: if an option for evaluations lacks another one that it needs.
    """
    evaluates = args.eval_strategy != "no"
    if evaluates != bool(eval_args.eval_datasets):
        raise ValueError("--eval_datasets and --eval_strategy steps belong together: set both, or neither")
    if eval_args.early_stopping_patience is not None and not args.load_best_model_at_end:
        raise ValueError("--early_stopping_patience stops at the best model: also set --load_best_model_at_end")
    if eval_args.prediction_benchmark and not (
        eval_args.prediction_data and (eval_args.prediction_steps or evaluates)
    ):
        raise ValueError("--prediction_benchmark needs --prediction_data, and --prediction_steps or --eval_strategy")
