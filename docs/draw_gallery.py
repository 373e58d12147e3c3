"""
Evaluate nano with and without video, and write docs/figures/gallery.png: the gallery's page with a sample on which the
two differ. It needs the built page (`make gallery`), Playwright and Chromium.

    python docs/draw_gallery.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from figure_style import FIGURES
from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 800  # CSS pixels
CLIPS, SEED = 30, 1  # the first of the held-out clips
TASK, FRAME = "bounces", "Frame 7 of 16"  # of the sample that is shown
PLLAVA = [sys.executable, "-c", "from pllava_cli import app; app()"]


def main() -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = [sys.executable, "-m", "pllava.nano", "render", "held-out", "--clips", str(CLIPS), "--seed", str(SEED)]
        subprocess.run(world, check=True, cwd=folder)
        subprocess.run([*PLLAVA, "eval", "nano", "--data", "held-out", "--controls"], check=True, cwd=folder)
        results = ["results/nano", "results/nano/no_video"]
        subprocess.run([*PLLAVA, "gallery", *results, "--export", "site", "--clips"], check=True, cwd=folder)
        draw(folder / "site", FIGURES / "gallery.png")


def draw(site: Path, file: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"{(site / 'index.html').as_uri()}#view=different&sample={choose_sample(site)}")
        page.get_by_role("button", name=FRAME).first.click()
        while page.evaluate("(video => video.seeking || video.readyState < 4)(document.querySelector('video'))"):
            page.wait_for_timeout(50)
        page.locator("h1").click()  # away from the frame
        page.wait_for_timeout(1000)  # until the video's spinner is gone
        page.screenshot(path=file)
        browser.close()
    Image.open(file).convert("RGB").save(file, optimize=True)
    print(f"Wrote {file}, {file.stat().st_size / 1000:.0f} kB")


def choose_sample(site: Path) -> str:
    """Return the first sample of the task that nano answers right with video, and wrong without."""
    script = (site / "data" / "gallery.js").read_text(encoding="utf-8")
    (benchmark,) = json.loads(script.partition(" = ")[2].rstrip().removesuffix(";"))["benchmarks"]
    wanted = ["right", "wrong"]
    samples = (each for each in benchmark["samples"] if [answer["status"] for answer in each["answers"]] == wanted)
    return next(sample["id"] for sample in samples if sample["task"] == TASK)


if __name__ == "__main__":
    main()
