"""What a reader of the README and of docs/ relies on: links, figures, widths, numbers."""

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_GIF_BYTES = 2_000_000


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    targets = [one or other for one, other in links]
    assert targets or page.name != "README.md"
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_at_most_120_characters(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 170


def test_gif_is_small():
    assert 0 < (ROOT / "docs" / "figures" / "demo.gif").stat().st_size < MAX_GIF_BYTES


def test_readme_repeats_the_figures_of_nanos_card():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Results of nano")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    card = (ROOT / "nano" / "checkpoint" / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 4 and set(rows) <= set(card)


def test_badges_state_the_supported_versions():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (oldest,) = re.findall(r"transformers>=([\d.]+)", config["options"]["install_requires"])
    assert f"![transformers >= {oldest}]" in readme
    python = config["options"]["python_requires"].removeprefix(">=")
    newest = re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"])[-1]
    assert f"![Python {python} to {newest}]" in readme
