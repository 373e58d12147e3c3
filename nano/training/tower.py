"""
Stage 0: nano's vision tower learns to see before there is a language model, as CLIP's did.

Each patch learns to say which shape is on it: its form, its colour, and the cell of its centre. Places are then in the
content of the tokens, as they are in CLIP's. Otherwise the language model would read them from the order of the
tokens, which changes with the pooling.
"""

import random
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset
from transformers import BaseImageProcessor, PreTrainedModel, Trainer, TrainingArguments

from ...train.loader.collator import IGNORE_INDEX
from ..world import drawing, scenes
from ..world.questions import GRID, cell

NEAR = scenes.RADIUS + 1  # pixels along each axis between the centres of a shape and of a patch that shows it


class PatchLabels(nn.Module):
    """
    The tower with a linear layer for each label of a patch.

    Args:
        encoder: A model with `encode_frames`, whose tower is trained.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        width = encoder.config.vision_config.hidden_size
        sizes = (1 + len(scenes.SHAPES), 1 + len(scenes.COLOURS), GRID, GRID)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """
        Args:
            pixel_values: `(images, 3, height, width)`.
            labels: `(images, patches, 4)` int64: form, colour, column and row. A patch without a shape has form and
                colour 0, and no place (-100).
        """
        patches = self.encoder.encode_frames(pixel_values).last_hidden_state
        losses = [
            cross_entropy(head(patches).flatten(0, 1), label.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
            for head, label in zip(self.heads, labels.unbind(-1), strict=True)
        ]
        counts = (labels != IGNORE_INDEX).sum((0, 1)).clamp(min=1)  # frames without shapes have no places to learn
        return {"loss": (torch.stack(losses) / counts).sum()}


def train_tower(
    model: PreTrainedModel, image_processor: BaseImageProcessor, args: TrainingArguments, most_shapes: int, seed: int
) -> float:
    """
    Train the vision tower of a PLLaVA.

    Args:
        most_shapes: Of a frame.

    Returns:
        The training's seconds.
    """
    collate = partial(collate_frames, image_processor, model.config.patch_grid)
    trainer = Trainer(PatchLabels(model.model), args, collate, Frames(most_shapes, seed))
    return trainer.train().metrics["train_runtime"]


def collate_frames(
    image_processor: BaseImageProcessor, grid: int, frames: Sequence[tuple[scenes.Scene, int]]
) -> dict[str, Tensor]:
    """Return the pixels of frames and the labels of their patches, as [`PatchLabels`] takes them."""
    images = [Image.fromarray(drawing.draw_frame(*frame)) for frame in frames]
    labels = [label_patches(*frame, grid) for frame in frames]
    pixels = image_processor(images, return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels, "labels": torch.from_numpy(np.stack(labels))}


class Frames(IterableDataset):
    """An endless dataset of single frames: a scene, and the frame's number."""

    def __init__(self, most_shapes: int, seed: int):
        self.most_shapes, self.seed = most_shapes, seed

    def __iter__(self) -> Iterator[tuple[scenes.Scene, int]]:
        rng = random.Random(f"tower/{self.seed}")
        while True:
            yield scenes.sample_scene(rng, self.most_shapes), rng.randrange(scenes.NUM_FRAMES)


def label_patches(scene: scenes.Scene, frame: int, grid: int) -> np.ndarray:
    """Return the labels of a frame's patches, `(grid * grid, 4)` int64, see [`PatchLabels`]."""
    centres = (np.arange(grid) + 0.5) * scenes.SIZE / grid
    labels = np.full((grid, grid, 4), IGNORE_INDEX)
    labels[..., :2] = 0
    for actor in scene.actors:
        if (centre := actor.path[frame]) is None:
            continue
        x, y = centre
        form, colour = 1 + scenes.SHAPES.index(actor.shape), 1 + list(scenes.COLOURS).index(actor.colour)
        shown = (abs(centres - y) < NEAR)[:, None] & (abs(centres - x) < NEAR)
        labels[shown] = form, colour, cell(x) - 1, cell(y) - 1
    return labels.reshape(-1, 4)
