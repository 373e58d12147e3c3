"""Leaves the logits of what is not labelled uncomputed: most positions of an example are a video's tokens."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .collator import IGNORE_INDEX


class LabelledPositions:
    """
    Cuts the hidden states that a language model's head gets down to those whose next token is labelled.

    TRL's LM head does so on GPUs only; it takes the labels of what is left as `shift_labels`.

    Args:
        backbone: The model without its head.
    """

    def __init__(self, backbone: nn.Module):
        self._positions: torch.BoolTensor | None = None
        backbone.register_forward_hook(self._select)

    def select(self, labels: torch.LongTensor) -> torch.LongTensor:
        """
        For the next forward pass: `labels` `(batch, sequence)`, -100 where nothing is learned, -> the `shift_labels`
        `(1, labelled)` of the hidden states `(1, labelled, D)` that it will give.
        """
        following = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        self._positions = following != IGNORE_INDEX
        return following[self._positions][None]

    def _select(self, module: nn.Module, args: Any, output: BaseModelOutputWithPast) -> None:
        if self._positions is not None:
            output.last_hidden_state = output.last_hidden_state[self._positions][None]
            self._positions = None
