"""
Draw the card with which an adapter is published, and write docs/figures/card.png. It needs Chromium.

    python docs/draw_card.py FOLDER [--results FOLDER] [--base-model NAME]

FOLDER is that of the adapter, such as `my-nano` of the README; the options are those of `pllava card`.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from figure_style import FIGURES
from markdown_it import MarkdownIt
from PIL import Image

REPO_ID = "my-name/my-nano"
WIDTH, HEIGHT, COLUMNS, GAP = 720, 6000, 3, 24  # CSS pixels
STYLE = f"""
body {{ width: {WIDTH - 48}px; margin: 0 24px; color: #1f2328; font: 15px/1.5 "Noto Sans", "DejaVu Sans", sans-serif }}
h1, h2 {{ border-bottom: 1px solid #d1d9e0; padding-bottom: 4px; line-height: 1.25; margin: 20px 0 12px }}
p, table, pre {{ margin: 0 0 12px }} img {{ max-width: 100%; display: block }}
a {{ color: #0969da; text-decoration: none }}
pre {{ background: #f6f8fa; border-radius: 6px; padding: 12px; font-size: 12.5px; white-space: pre-wrap }}
code {{ font-family: "DejaVu Sans Mono", monospace; font-size: 85% }}
table {{ border-collapse: collapse; font-size: 13.5px }} td, th {{ border: 1px solid #d1d9e0; padding: 3px 10px }}
thead:not(:has(th:not(:empty))) {{ display: none }}
"""


def main(folder: str, *options: str) -> None:
    command = ["pllava", "card", folder, "--repo-id", REPO_ID, *options]
    card = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = card.split("\n---\n", 1)[1].split("## Limits and bias")[0]  # without metadata, and what all cards say
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    with TemporaryDirectory() as temporary:
        html, picture = Path(temporary, "card.html"), Path(temporary, "card.png")
        base = Path(folder).resolve().as_uri()
        html.write_text(f"<!DOCTYPE html><meta charset=utf-8><base href='{base}/'><style>{STYLE}</style>{page}")
        screenshot = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        command = ["chromium", *screenshot, f"--screenshot={picture}", html.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        columns(Image.open(picture).convert("RGB")).quantize(128).save(FIGURES / "card.png", optimize=True)
    print(f"Wrote {FIGURES / 'card.png'}")


def columns(page: Image.Image) -> Image.Image:
    """Cut a page into columns of the same height, at lines without content, and put them side by side."""
    gray = page.convert("L")
    rows = [gray.crop((0, y, page.width, y + 1)).getextrema()[0] > 250 for y in range(page.height)]  # True: empty
    bottom = max(y for y, empty in enumerate(rows) if not empty) + 20
    cuts = [0]
    for number in range(1, COLUMNS):
        cut = bottom * number // COLUMNS
        while not all(rows[cut : cut + 8]):
            cut += 1
        cuts.append(cut)
    parts = [page.crop((0, top, page.width, end)) for top, end in zip(cuts, [*cuts[1:], bottom], strict=True)]
    size = (COLUMNS * WIDTH + (COLUMNS - 1) * GAP, max(part.height for part in parts) + 2 * GAP)
    sheet = Image.new("RGB", size, "#d1d9e0")
    for number, part in enumerate(parts):
        left = number * (WIDTH + GAP)
        sheet.paste("white", (left, 0, left + WIDTH, size[1]))
        sheet.paste(part, (left, GAP))
    return sheet


if __name__ == "__main__":
    main(*sys.argv[1:])
