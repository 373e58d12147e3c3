"""Options of transformers and TRL that have no effect on streams of videos: refused by name, never ignored."""

from typing import Any

from transformers import TrainingArguments

from .saving import check_hub_strategy

_LABELS = "the assistant's words are learned, in all turns, and nothing else"
_COLLATOR = "the collator makes the batches: one example in a row, padded to the longest"
_STREAM = "rows are streamed, shuffled and decoded by the data loader"
_LOADER = "the loader's batches are full, each process makes its own, and its workers last as long as the run"
# Options that have no effect on streams of videos: the only accepted value, and why others are refused
REFUSED: dict[str, tuple[Any, str]] = {
    "completion_only_loss": (None, _LABELS),
    "packing": (False, _COLLATOR),
    "eval_packing": (None, _COLLATOR),
    "padding_free": (False, _COLLATOR),
    "pad_to_multiple_of": (None, _COLLATOR),
    "pad_token": (None, "the tokenizer's own is used"),
    "truncation_mode": ("keep_start", "a conversation longer than `max_length` loses its last turns"),
    "shuffle_dataset": (False, f"{_STREAM}: see `shuffle_buffer_size`"),
    "dataset_num_proc": (None, f"{_STREAM}: see `dataloader_num_workers`"),
    "train_sampling_strategy": ("random", _STREAM),
    "auto_find_batch_size": (False, "the cursor of the stream is saved for batches of one size"),
    "precompute_ref_log_probs": (False, _STREAM),
    "dataset_kwargs": (None, _STREAM),
    "ignore_data_skip": (False, "a resumed run continues the stream from its cursor, and decodes nothing again"),
    "dataloader_drop_last": (False, _LOADER),
    "dataloader_persistent_workers": (False, _LOADER),
}
REFUSED_OF_ACCELERATE = {"split_batches": False, "dispatch_batches": None}  # in `accelerator_config`


def check_options(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: if an option has a value that streams of videos cannot be trained with; the message says why.
    """
    for name, (accepted, reason) in REFUSED.items():
        value = getattr(args, name, accepted)
        if value != accepted:
            raise ValueError(f"{name}={value!r} is not possible here: {reason}")
    for name, accepted in REFUSED_OF_ACCELERATE.items():
        value = getattr(args.accelerator_config, name)
        if value != accepted:
            raise ValueError(f"accelerator_config: {name}={value!r} is not possible here: {_LOADER}")
    for name in ("logging_strategy", "save_strategy", "eval_strategy"):
        if getattr(args, name) == "epoch":
            raise ValueError(f"{name}=epoch is not possible here: a stream continues over its epochs; use steps")
    check_hub_strategy(args)
