"""The clips that are captioned: where they come from, what they hold, and the parts that they have."""

from .clip import HUB_SCHEME, Bounds, Clip, Failed, Row
from .finding import find_clips
from .splitting import Identify, Scenes, Split, Windows

__all__ = [
    "HUB_SCHEME",
    "Bounds",
    "Clip",
    "Failed",
    "Identify",
    "Row",
    "Scenes",
    "Split",
    "Windows",
    "find_clips",
]
