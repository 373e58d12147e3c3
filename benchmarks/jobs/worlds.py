"""Rendered clips of nano's world, and the floor of what reads them."""

from pathlib import Path

import av
from measuring import Setting, Step

from pllava.nano.world.rendering import render


def rendered(setting: Setting, clips: int) -> Path:
    """Return a folder with clips and their questions, which is rendered if the cache lacks it."""
    folder = setting.cache / f"world_{clips}"
    if not (folder / "questions.jsonl").exists():
        render(folder, clips, seed=1)
    return folder


def floor(clips: int, setting: Setting) -> Step:
    """Decode each clip once."""
    files = sorted((rendered(setting, clips) / "clips").iterdir())

    def run() -> None:
        for file in files:
            with av.open(str(file)) as container:
                container.streams.video[0].thread_type = "NONE"
                for _ in container.decode(video=0):
                    pass

    return Step(run, shared=True)
