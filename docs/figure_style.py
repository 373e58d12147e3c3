"""Canvas, colours, boxes and arrows shared by the scripts that draw the documentation's figures."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FIGURES = Path(__file__).parent / "figures"
WIDTH = 830  # CSS pixels: the width of GitHub's text column


@dataclass(frozen=True)
class Theme:
    """Colours of a figure for light or for dark pages; `page` is GitHub's background, which is left transparent."""

    name: str
    page: str
    text: str
    muted: str
    line: str
    quiet: str
    strong: str
    on_strong: str


LIGHT = Theme("light", "#ffffff", "#1f2328", "#59636e", "#818b98", "#e6eaef", "#0066b3", "#ffffff")
DARK = Theme("dark", "#0d1117", "#e6edf3", "#9aa4af", "#7d8590", "#2b323a", "#4db2ff", "#0d1117")


def canvas(height: float) -> tuple[Figure, Axes]:
    """Return a figure whose data coordinates are CSS pixels, from the upper left corner."""
    figure = Figure(figsize=(WIDTH / 100, height / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_autoscale_on(False)
    axes.axis("off")
    return figure, axes


def text(axes: Axes, x: float, y: float, content: str, color: str, pixels: float = 12.5, **kwargs) -> None:
    """Write text that is centred on (x, y) unless kwargs align it otherwise."""
    alignment = {"ha": "center", "va": "center", "linespacing": 1.25, **kwargs}
    axes.text(x, y, content, color=color, fontsize=pixels * 0.72, **alignment)  # 100 pixels an inch, 72 points an inch


def box(axes: Axes, x: float, y: float, width: float, height: float, edge: str, fill: str = "none", **kwargs) -> None:
    """Draw a rounded rectangle with its upper left corner at (x, y)."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=6", ec=edge, fc=fill, **kwargs)
    axes.add_patch(shape)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, **kwargs) -> None:
    """Draw an arrow between two points."""
    style = {"arrowstyle": "-|>,head_length=4,head_width=2.2", "lw": 1.3, "shrinkA": 0, "shrinkB": 0, **kwargs}
    axes.add_patch(FancyArrowPatch(start, end, color=color, **style))


def save(figure: Figure, name: str, theme: Theme) -> None:
    """Write docs/figures/NAME_light.png or NAME_dark.png at twice the displayed resolution."""
    FIGURES.mkdir(exist_ok=True)
    file = FIGURES / f"{name}_{theme.name}.png"
    figure.savefig(file, dpi=200, transparent=True, metadata={"Software": None})
    print(f"Wrote {file}")
