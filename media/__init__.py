"""The gate for media from strangers: what may be read, and within which limits."""

from .decoding import AS_SAMPLED
from .gate import Media, MediaGate
from .limits import MediaLimits, MediaRefused

__all__ = ["AS_SAMPLED", "Media", "MediaGate", "MediaLimits", "MediaRefused"]
