"""The gate for media from strangers: what may be read, and within which limits."""

from .gate import Media, MediaGate
from .limits import MediaLimits, MediaRefused

__all__ = ["Media", "MediaGate", "MediaLimits", "MediaRefused"]
