"""
Evaluate nano with and without video, and write docs/figures/gallery.png: the gallery's page with a sample on which the
two differ. It needs the built page (`make gallery`) and Chromium.

    python docs/draw_gallery.py
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from figure_style import FIGURES
from PIL import Image

WIDTH, HEIGHT = 1280, 800  # CSS pixels
CLIPS, SEED = 30, 1  # the first of the held-out clips
TASK = "bounces"  # of the sample that is shown
PLLAVA = [sys.executable, "-c", "from pllava_cli import app; app()"]


def main() -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = [sys.executable, "-m", "pllava.nano", "render", "held-out", "--clips", str(CLIPS), "--seed", str(SEED)]
        subprocess.run(world, check=True, cwd=folder)
        subprocess.run([*PLLAVA, "eval", "nano", "--data", "held-out", "--controls"], check=True, cwd=folder)
        results = ["results/nano", "results/nano/no_video"]
        subprocess.run([*PLLAVA, "gallery", *results, "--export", "site", "--clips"], check=True, cwd=folder)
        page, picture = folder / "site" / "index.html", folder / "gallery.png"
        address = f"{page.as_uri()}#view=different&sample={choose_sample(folder / 'site')}"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=5000"]
        command = ["chromium", *options, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", address]
        subprocess.run(command, check=True, capture_output=True)
        Image.open(picture).convert("RGB").quantize(128).save(FIGURES / "gallery.png", optimize=True)
    size = (FIGURES / "gallery.png").stat().st_size
    print(f"Wrote {FIGURES / 'gallery.png'}, {size / 1000:.0f} kB")


def choose_sample(site: Path) -> str:
    """Return the first sample of the task that nano answers right with video, and wrong without."""
    script = (site / "data" / "gallery.js").read_text(encoding="utf-8")
    (benchmark,) = json.loads(script.partition(" = ")[2].rstrip().removesuffix(";"))["benchmarks"]
    wanted = ["right", "wrong"]
    samples = (each for each in benchmark["samples"] if [answer["status"] for answer in each["answers"]] == wanted)
    return next(sample["id"] for sample in samples if sample["task"] == TASK)


if __name__ == "__main__":
    main()
