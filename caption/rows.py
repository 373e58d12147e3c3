"""Rows of captions: what each one records, and the id by which a caption is known."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from .clips import Clip, Row

Settings = dict[str, Any]  # how captions are made: the model, what it sees of a clip, and the length limit

NAMES = ("model", "adapter")  # in settings: two names are the same model if their revisions are equal


def caption_id(clip: Clip, prompt: str, settings: Settings) -> str:
    """
    Return the id of a caption: a hash of the clip's content and bounds, the prompt and the settings. Neither the name
    of the clip is in it, nor that of a model with a revision.
    """
    content = clip.sha256 or clip.video
    return _digest([content, clip.start, clip.end, prompt, _without_names(settings)])[:32]


def caption_row(clip: Clip, prompt: str, caption: str, settings: Settings, **facts: Any) -> Row:
    """
    Return the row of a caption.

    Args:
        facts: What else is known of it, such as "frames", "flags" or "prompt_hash". None and empty lists are left out.
    """
    return {
        "id": caption_id(clip, prompt, settings),
        **clip.describe(),
        "caption": caption,
        "prompt": prompt,
        **{name: value for name, value in facts.items() if value not in (None, [])},
        **settings,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def text_hash(text: str) -> str:
    """Return a short hash of a prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(row: Row, settings: Settings) -> tuple[Settings, Settings] | None:
    """Return the settings that differ between a row and a run, as they are in both; None if it was made like this."""
    names = settings.keys() | {"served"}  # of a server's captions only
    names -= set() if "served" in settings else set(NAMES)
    different = sorted(name for name in names if row.get(name) != settings.get(name))
    if not different:
        return None
    old, new = ({name: values.get(name) for name in different} for values in (row, settings))
    return old, new


def _without_names(settings: Settings) -> Settings:
    return settings if "served" in settings else {key: settings[key] for key in settings if key not in NAMES}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
