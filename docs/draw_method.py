"""
Draw PLLaVA's method (arXiv 2404.16994) from a video to an answer, and write docs/figures/method_light.png and
method_dark.png, and hub_cards/cards/method.png for model cards. The frames are those of nano's demo clip; the sizes
are those of the paper's models.

    python docs/draw_method.py
"""

import numpy as np
from draw_demo import SEED
from figure_style import DARK, LIGHT, Theme, arrow, box, canvas, save, text
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pllava.hub_cards.cards.rendering import METHOD_FIGURE
from pllava.nano.demo import demo_clip
from pllava.nano.world import drawing

NUM_FRAMES, PATCHES, POOLED = 16, 24, 12
MIDDLE = 92  # of the upper row, from the video to the pooled tokens
LOWER = 290  # the middle of the lower row, from the prompt to the answer


def main() -> None:
    frames = drawing.draw(demo_clip(SEED)[0])
    frames = frames[:: len(frames) // NUM_FRAMES]
    for theme in (LIGHT, DARK):
        draw(frames, theme)


def draw(frames: np.ndarray, theme: Theme) -> None:
    figure, axes = canvas(height=368)
    draw_frames(axes, frames, 4, theme)
    step(axes, 158, 114, "CLIP ViT-L/14\n336 px", "frozen", theme)
    step(axes, 300, 94, "projector\n(2 layers)", "trained", theme)
    draw_tokens(axes, frames, PATCHES, 422, theme)
    step(axes, 570, 134, "adaptive\naverage pooling", "no parameters", theme)
    draw_tokens(axes, frames, POOLED, 732, theme)
    for start, end in ((130, 154), (274, 296), (396, 418), (544, 566), (706, 730)):
        arrow(axes, (start, MIDDLE), (end, MIDDLE), theme.line)

    draw_prompt(axes, frames, theme)
    draw_language_model(axes, theme)
    box(axes, 704, LOWER - 22, 122, 44, theme.line)
    text(axes, 765, LOWER, "three", theme.text, 14, family="monospace")
    text(axes, 765, LOWER - 36, "answer", theme.muted)
    for start, end in ((284, 312), (672, 700)):
        arrow(axes, (start, LOWER), (end, LOWER), theme.line)
    save(figure, "method", theme)
    if theme is LIGHT:  # cards have one picture, for light and dark pages
        figure.savefig(METHOD_FIGURE, dpi=150, facecolor=theme.page, metadata={"Software": None})


def step(axes: Axes, x: float, width: float, name: str, kind: str, theme: Theme) -> None:
    """Draw one part of the model, in the style of its kind: "frozen", "trained" or "no parameters"."""
    part(axes, x, MIDDLE - 38, width, 76, kind, theme)
    color = theme.on_strong if kind == "trained" else theme.text
    text(axes, x + width / 2, MIDDLE - 11, name, color, 13, weight="bold")
    text(axes, x + width / 2, MIDDLE + 21, kind, color if kind == "trained" else theme.muted)


def part(axes: Axes, x: float, y: float, width: float, height: float, kind: str, theme: Theme) -> None:
    styles = {
        "frozen": (theme.line, theme.quiet, {}),
        "trained": (theme.strong, theme.strong, {}),
        "no parameters": (theme.text, "none", {"ls": (0, (4, 3)), "lw": 1.3}),
    }
    edge, fill, style = styles[kind]
    box(axes, x, y, width, height, edge, fill, **style)


def draw_frames(axes: Axes, frames: np.ndarray, x: float, theme: Theme) -> None:
    for number, frame in enumerate(frames):
        row, column = divmod(number, 4)
        show(axes, frame, x + 31 * column, MIDDLE - 61 + 31 * row, 29, 29, theme)
    text(axes, x + 61, MIDDLE - 77, "video", theme.text, 13, weight="bold")
    text(axes, x + 61, MIDDLE + 77, f"{NUM_FRAMES} frames", theme.text)


def draw_tokens(axes: Axes, frames: np.ndarray, size: int, x: float, theme: Theme) -> None:
    """Draw the tokens of five frames as a stack of grids, each token in the mean colour of its patch."""
    side, shift = 4 * size, 5
    y = MIDDLE - side / 2 + 2 * shift
    for depth in (4, 3, 2, 1, 0):
        grid = mean_blocks(frames[10 + depth], size)
        show(axes, grid, x + depth * shift, y - depth * shift, side, side, theme)
    label = f"{NUM_FRAMES} × {size} × {size}\n= {NUM_FRAMES * size * size:,} tokens"
    text(axes, x + 2 * shift + side / 2, MIDDLE + 78, label, theme.text)


def mean_blocks(image: np.ndarray, size: int) -> np.ndarray:
    """Average an image over blocks, to `(size, size, 3)`, as PLLaVA averages its tokens."""
    block = image.shape[0] // size
    return image.reshape(size, block, size, block, 3).mean((1, 3)).astype(np.uint8)


def show(axes: Axes, image: np.ndarray, x: float, y: float, width: float, height: float, theme: Theme) -> None:
    """Draw an image with its upper left corner at (x, y), and lines between the cells if it is a grid of tokens."""
    extent = (x, x + width, y + height, y)
    axes.imshow(image, extent=extent, interpolation="nearest", aspect="auto", zorder=2)
    if max(image.shape) <= PATCHES:
        rows, columns = image.shape[:2]
        lines = {"color": "black", "lw": 0.4, "alpha": 0.5, "zorder": 2}
        axes.hlines(y + np.arange(1, rows) * height / rows, x, x + width, **lines)
        axes.vlines(x + np.arange(1, columns) * width / columns, y, y + height, **lines)
    axes.add_patch(Rectangle((x, y), width, height, ec=theme.line, fc="none", lw=0.8, zorder=2))


def draw_prompt(axes: Axes, frames: np.ndarray, theme: Theme) -> None:
    """Draw the prompt, and the line on which the pooled tokens come down into it."""
    box(axes, 4, LOWER - 50, 278, 100, theme.line)
    text(axes, 143, LOWER - 64, "prompt", theme.muted)
    code = {"ha": "left", "family": "monospace"}
    text(axes, 14, LOWER - 30, "USER:", theme.text, **code)
    tokens = mean_blocks(frames[10], POOLED)[7:9].reshape(1, -1, 3)
    show(axes, tokens, 64, LOWER - 35, 210, 10, theme)
    text(axes, 14, LOWER + 2, "How many times does the\nblue ring bounce?", theme.text, **code)
    text(axes, 14, LOWER + 34, "ASSISTANT:", theme.text, **code)
    corner = LOWER - 82
    axes.plot([762, 762, 230, 230], [MIDDLE + 100, corner, corner, corner], color=theme.line, lw=1.3)
    arrow(axes, (230, corner), (230, LOWER - 38), theme.line)
    text(axes, 492, corner - 11, "the tokens take the place of <video>", theme.muted)


def draw_language_model(axes: Axes, theme: Theme) -> None:
    x, width, top = 316, 352, LOWER - 62
    part(axes, x, top, width, 132, "frozen", theme)
    text(axes, x + width / 2, top + 20, "language model", theme.text, 13, weight="bold")
    text(axes, x + width / 2, top + 39, "Vicuna 7B, 13B or Yi 34B · frozen", theme.muted)
    part(axes, x + 12, top + 54, width - 24, 66, "trained", theme)
    text(axes, x + width / 2, top + 68, "LoRA on queries and values · trained", theme.on_strong, 13, weight="bold")
    text(axes, x + width / 2, top + 87, r"$W = W_0 + (\alpha \, / \, r) \, B A$", theme.on_strong, 14)
    text(axes, x + width / 2, top + 107, "the strength α is set after training", theme.on_strong)


if __name__ == "__main__":
    main()
