"""
Captions of many videos, on a laptop or a cluster: each made once, known by the content of its clip, the model, the
prompt and the frames, and recorded with these. `pllava caption` is the command.
"""

from .captioners.decoding import Decode, Decoded
from .captioners.local import LocalCaptioner
from .clips import Clip, Failed, Row, Scenes, Split, Windows, find_clips
from .cluster import ClusterModel
from .report import Report
from .run import Job, LocalModel, ServedModel, caption_clips, default_workers, finish, hold
from .store import CaptionStore

__all__ = [
    "CaptionStore",
    "Clip",
    "ClusterModel",
    "Decode",
    "Decoded",
    "Failed",
    "Job",
    "LocalCaptioner",
    "LocalModel",
    "Report",
    "Row",
    "Scenes",
    "ServedModel",
    "Split",
    "Windows",
    "caption_clips",
    "default_workers",
    "find_clips",
    "finish",
    "hold",
]
