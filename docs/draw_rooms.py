"""
Draw the rooms of the repository and the imports between them, and write
docs/figures/rooms_light.png and rooms_dark.png. All is measured from the code:

    python docs/draw_rooms.py

If an import points upwards, or files import each other, nothing is drawn: these are listed, and the exit status is 1.
"""

import sys

from figure_style import DARK, LIGHT, arrow, box, canvas, save, text
from rooms import ROOMS, check_rooms, measure_imports, room_of

HALF_HEIGHT = 26
# The centre of each room and half its width, in CSS pixels, and what it holds
DRAWN = {
    "nano": (410, 30, 112, "a synthetic world, a checkpoint"),
    "cli": (410, 98, 100, "the command line"),
    "convert": (56, 170, 52, "to our format"),
    "train": (180, 170, 62, "trainer, recipes"),
    "caption": (326, 170, 74, "collections, clusters"),
    "gallery": (474, 170, 64, "results as a page"),
    "demo": (598, 170, 50, "a chat"),
    "serving": (744, 170, 84, "OpenAI's API, vLLM"),
    "data": (225, 254, 84, "rows, mixtures, shards"),
    "eval": (408, 254, 84, "benchmarks, judges"),
    "nano's world": (766, 254, 60, "shapes, clips"),
    "hub_cards": (112, 342, 98, "publishing, cards, Spaces"),
    "loading": (404, 342, 84, "models with adapters"),
    "media": (742, 342, 58, "gate, sandbox"),
    "result_files": (90, 520, 62, "results, as text"),
    "adapters": (280, 500, 88, "LoRA, alpha, pooling"),
    "origins": (450, 500, 62, "ids, commits"),
    "generation": (604, 500, 74, "shared KV caches"),
    "checkpoint_files": (360, 590, 84, "safetensors, the index"),
    "model files": (640, 590, 70, "travel to the Hub"),
    "files": (320, 680, 66, "JSON Lines"),
    "workers": (470, 680, 66, "timeouts, retries"),
    "extras": (620, 680, 66, "pip, versions"),
}
USED_BY_MANY = {"files", "workers", "extras"}  # drawn without arrows


def main() -> None:
    imports = measure_imports()
    if errors := check_rooms(imports):
        sys.exit("\n".join(errors))
    draw(imports)


def room_imports(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the rooms that each room imports, without those that it also reaches by way of another room."""
    direct = {room: set() for line in ROOMS for room in line}
    for file, targets in imports.items():
        room = room_of(file, ROOMS)
        direct[room] |= {room_of(target, ROOMS) for target in targets} - {room}
    reached = {}
    for room in reversed(direct):  # from the bottom up
        reached[room] = direct[room].union(*(reached[lower] for lower in direct[room]))
    return {room: lower - set().union(*(reached[other] for other in lower)) for room, lower in direct.items()}


def draw(imports: dict[str, set[str]]) -> None:
    for theme in (LIGHT, DARK):
        figure, axes = canvas(height=712)
        for upper, lower in (
            (upper, lower) for upper, rooms in room_imports(imports).items() for lower in rooms - USED_BY_MANY
        ):
            (x0, y0, half0, _), (x1, y1, half1, _) = DRAWN[upper], DRAWN[lower]
            start = min(max(x1, x0 - half0 + 15), x0 + half0 - 15), y0 + HALF_HEIGHT
            end = min(max(start[0], x1 - half1 + 15), x1 + half1 - 15), y1 - HALF_HEIGHT - 1
            arrow(axes, start, end, theme.line)
        left = {"ha": "left", "va": "baseline", "zorder": 4}
        for room, (x, y, half, content) in DRAWN.items():
            box(axes, x - half, y - HALF_HEIGHT, 2 * half, 2 * HALF_HEIGHT, theme.line, theme.quiet, zorder=3)
            text(axes, x - half + 9, y - 6, room, theme.text, 13, **left, weight="bold")
            text(axes, x - half + 9, y + 14, content, theme.muted, 12, **left)
        note = "An arrow is an import; those that\nother arrows imply are left out."
        text(axes, 4, 16, note, theme.muted, ha="left", va="top")
        text(axes, 244, 680, "Many rooms import:", theme.muted, ha="right", va="center")
        save(figure, "rooms", theme)


if __name__ == "__main__":
    main()
