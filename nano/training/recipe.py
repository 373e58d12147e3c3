"""The recipe by which nano is trained, as data: `recipe.yaml`."""

from dataclasses import dataclass
from pathlib import Path

import yaml

RECIPE = Path(__file__).with_name("recipe.yaml")


@dataclass(frozen=True)
class Stage:
    """
    A stage of training.

    Args:
        most_shapes: Of a scene.
    """

    steps: int
    batch_size: int
    learning_rate: float
    most_shapes: int


@dataclass(frozen=True)
class ImageStage(Stage):
    """
    Args:
        pooling_shape: Frames, rows and columns of the pooled tokens.
        mix: The kinds of conversations (`IMAGE_KINDS` or `VIDEO_KINDS` in `conversations.py`), with their weights at
            the beginning and at the end of the stage.
    """

    pooling_shape: list[int]
    mix: dict[str, list[float]]


@dataclass(frozen=True)
class VideoStage(ImageStage):
    """
    Args:
        clips: Training clips, each of which is seen several times.
        num_frames: Frames of a clip that the model reads.
        lora_r: Rank of the adapter, which is also its alpha in training.
        types: How often the first question of a conversation is of each type, as weights. A type that clips seldom
            allow is asked as often as its weight says.
    """

    clips: int
    num_frames: int
    lora_r: int
    types: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        widths: Hidden sizes of the vision tower and the language model, by the size's name.
        tower_stage: Stage 0.
        image_stage: Stage 1.
        video_stage: Stage 2.
    """

    widths: dict[str, int]
    tower_stage: Stage
    image_stage: ImageStage
    video_stage: VideoStage


def read_recipe(file: Path = RECIPE) -> Recipe:
    """
    Read a recipe.

    Raises:
        ValueError: if a value is missing or unknown.
    """
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        kinds = {"tower_stage": Stage, "image_stage": ImageStage, "video_stage": VideoStage}
        stages = {name: kind(**values.pop(name)) for name, kind in kinds.items()}
        return Recipe(**stages, **values)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a recipe like {RECIPE}: {error}") from None
