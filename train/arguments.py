"""Options of transformers and TRL that streams of videos cannot be trained with: refused by name, never ignored."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from trl import ModelConfig

from .saving import check_hub_strategy

_LEARNED = "what the assistant says is learned, in all turns, and nothing else"
_COLLATED = "the collator makes the batches: one example in a row, padded to the longest"
_STREAMED = "rows are streamed, shuffled and decoded by the data loader"
_LOADER = "the loader's batches are full, each process makes its own, and its workers last as long as the run"
# By name: the value that asks for nothing, and why any other is refused
REFUSED: dict[str, tuple[Any, str]] = {
    "completion_only_loss": (None, _LEARNED),
    "packing": (False, _COLLATED),
    "eval_packing": (None, _COLLATED),
    "padding_free": (False, _COLLATED),
    "pad_to_multiple_of": (None, _COLLATED),
    "pad_token": (None, "the tokenizer's own is taken"),
    "truncation_mode": ("keep_start", "a conversation longer than `max_length` loses its last turns"),
    "shuffle_dataset": (False, f"{_STREAMED}: see `shuffle_buffer_size`"),
    "dataset_num_proc": (None, f"{_STREAMED}: see `dataloader_num_workers`"),
    "train_sampling_strategy": ("random", _STREAMED),
    "auto_find_batch_size": (False, "the place in the stream is kept for batches of one size"),
    "precompute_ref_log_probs": (False, _STREAMED),
    "dataset_kwargs": (None, _STREAMED),
    "ignore_data_skip": (False, "a resumed run goes on in the stream where it stood, and decodes nothing again"),
    "dataloader_drop_last": (False, _LOADER),
    "dataloader_persistent_workers": (False, _LOADER),
}
OF_ACCELERATE = {"split_batches": False, "dispatch_batches": None}  # in `accelerator_config`, with their defaults


def check_options(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: if an option asks for what is not done here; the message says why.
    """
    for name, (neutral, reason) in REFUSED.items():
        value = getattr(args, name, neutral)
        if value != neutral:
            raise ValueError(f"{name}={value!r} is not possible here: {reason}")
    for name, neutral in OF_ACCELERATE.items():
        value = getattr(args.accelerator_config, name)
        if value != neutral:
            raise ValueError(f"accelerator_config: {name}={value!r} is not possible here: {_LOADER}")
    for name in ("logging_strategy", "save_strategy", "eval_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(f"{name}=epoch is not possible here: a stream goes on over its epochs; take steps")
    check_hub_strategy(args)


@dataclass
class ModelArguments(ModelConfig):
    """TRL's model options, with the paper's adapter for a default."""

    adapter_name_or_path: str | None = field(
        default=None, metadata={"help": "An adapter to train on, in place of a new one."}
    )
    use_peft: bool = field(
        default=True, metadata={"help": "Train LoRA and the projector; else the whole model, the vision tower, too."}
    )
    lora_r: int = field(default=128, metadata={"help": "LoRA's rank."})
    lora_alpha: int = field(
        default=32, metadata={"help": "LoRA's strength in training; it can be set anew afterwards."}
    )
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"], metadata={"help": "Linear layers of the text model."}
    )


@dataclass
class DataArguments:
    """What is trained on."""

    datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Files, folders or Hub ids, `.yaml` lists of these; in a recipe also with their options."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "The folder that relative paths start from."})
    stopping_strategy: str = field(
        default="all_exhausted_without_replacement",
        metadata={"help": "When an epoch of a mixture ends, as in `datasets.interleave_datasets`."},
    )
    shuffle_buffer_size: int = field(
        default=4000, metadata={"help": "Rows of Parquet or WebDataset files that are shuffled together."}
    )
    sampling: str = field(default="random", metadata={"help": "Frames of a clip: random, uniform, middle or start."})
    max_unreadable: float = field(
        default=0.2, metadata={"help": "The run stops if a larger share of the examples cannot be read."}
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "Directory that keeps the vision tower's features: 18.9 MB a clip at 7B."}
    )
    feature_cache_size: str = field(
        default="200GB", metadata={"help": "What that directory may hold, as 500MB or 2TB; then no more is kept."}
    )


@dataclass
class EvaluationArguments:
    """What is evaluated while the model is trained; TRL's options say when, and which checkpoint is kept."""

    eval_datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "As `datasets`, for the loss (see `eval_strategy`); several are evaluated one by one."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "The run ends after so many evaluations without a better one."}
    )
    prediction_benchmark: str | None = field(
        default=None, metadata={"help": "A benchmark, or a YAML file: some of its questions are asked, for a table."}
    )
    prediction_data: str | None = field(
        default=None, metadata={"help": "The benchmark's files, a folder or a dataset on the Hub."}
    )
    prediction_steps: int | None = field(
        default=None, metadata={"help": "Steps between two tables; by default they come with the evaluations."}
    )
    num_predictions: int = field(default=8, metadata={"help": "How many questions are asked for a table."})
