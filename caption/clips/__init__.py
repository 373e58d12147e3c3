"""The clips that are captioned: where they come from, what they hold, and the parts that they have."""

from .clip import HUB_SCHEME, Bounds, Clip, Failed, Row
from .finding import count_clips, find_clips
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
    "count_clips",
    "find_clips",
]
