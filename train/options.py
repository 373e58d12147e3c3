"""Options of transformers and TRL that streams of videos cannot be trained with: refused by name, never ignored."""

from typing import Any

from transformers import TrainingArguments

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
