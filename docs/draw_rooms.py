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
    "nano": (440, 30, 112, "a synthetic world, a checkpoint"),
    "cli": (440, 98, 100, "the command line"),
    "demo": (120, 170, 100, "the chat in the browser"),
    "gallery": (350, 170, 100, "results in the browser"),
    "serving": (590, 170, 112, "OpenAI's API, vLLM's plugin"),
    "nano's world": (120, 246, 100, "shapes, clips, questions"),
    "train": (560, 246, 100, "trainer, loader, recipes"),
    "data": (400, 324, 84, "rows, mixtures, shards"),
    "eval": (700, 324, 118, "benchmarks, judges, reports"),
    "convert": (110, 336, 100, "other checkpoints, to ours"),
    "hub_cards": (218, 428, 98, "publishing, cards, Spaces"),
    "media": (760, 428, 60, "gate, sandbox"),
    "loading": (408, 428, 84, "models with adapters"),
    "adapters": (94, 518, 88, "LoRA, its strength alpha"),
    "origins": (300, 518, 66, "ids, commits"),
    "result_files": (590, 428, 60, "results, as text"),
    "model files": (290, 608, 70, "travel to the Hub"),
    "checkpoint_files": (460, 608, 84, "safetensors, the index"),
    "files": (590, 684, 66, "JSON Lines"),
    "workers": (724, 684, 62, "timeouts, retries"),
    "extras": (781, 612, 47, "pip, versions"),
}


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
        figure, axes = canvas(height=716)
        for upper, lower in ((upper, lower) for upper, rooms in room_imports(imports).items() for lower in rooms):
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
        save(figure, "rooms", theme)


if __name__ == "__main__":
    main()
