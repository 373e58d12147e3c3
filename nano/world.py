"""
The world that nano sees: one to three coloured shapes on a dark ground, four seconds long, and what can be asked about
them.

Each shape keeps to a lane of its own (three rows, or three columns) and does one thing: it stays still, moves, speeds
up or slows down, bounces off the walls, appears, leaves, or shows for a moment. The distributions are symmetric in
time and the answers of each question balanced, so that a model which does not see the frames, or sees them out of
order, can only guess where a question needs them: a clip played backwards is as likely as the clip, and has the
opposite answer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

SIZE = 96  # pixels of a side
NUM_FRAMES = 32
FPS = 8
RADIUS = 13  # pixels from a shape's centre to its edge
FLASH_FRAMES = 9  # how long a shape shows that shows for a moment

COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (55, 90, 235),
    "yellow": (240, 220, 50),
    "purple": (185, 60, 210),
    "white": (240, 240, 240),
}
SHAPES = ("ring", "square", "triangle", "cross")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
NUMBERS = ("one", "two", "three")
MOTIONS = ("move", "speed", "bounce")

# Questions whose answer changes, or cannot be known, when the frames are put out of order, and those for which any
# order will do.
ORDERED_TYPES = ("direction", "order", "bounces", "change", "speed")
UNORDERED_TYPES = ("colour", "shape", "count", "position")
TYPES = ORDERED_TYPES + UNORDERED_TYPES
EXERCISE_TYPES = ("trace", "action")  # for learning only, see `exercises`
CAPTION_QUESTION, IMAGE_CAPTION_QUESTION = "Describe the video.", "Describe the image."
GRID = 8  # columns and rows of the grid on which exact places are told, where a model is to learn to see them


@dataclass
class Actor:
    """One shape: what it looks like, and where its centre is in each frame (None where it is not to be seen)."""

    colour: str
    shape: str
    action: str
    answer: str  # what the action's question is answered with: the direction, the number of bounces, ...
    heading: str  # the word for the direction it moves in at first
    path: list[tuple[float, float] | None] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass
class Scene:
    """A clip before it is drawn: its shapes, whether their lanes are rows, and the grey of the ground (0..255)."""

    actors: list[Actor]
    horizontal: bool
    ground: int

    def acting(self, *actions: str) -> list[Actor]:
        return [actor for actor in self.actors if actor.action in actions]


def sample_scene(rng: random.Random) -> Scene:
    """Draws one scene. More than a third of all scenes have two shapes or three that move."""
    count = rng.choice((1, 2, 3))
    pairs = ([], [], [], ["flash", "flash"], ["appear", "leave"])
    actions = rng.choice(pairs) if count > 1 else []
    singles = ("still", "appear", "leave") + 8 * MOTIONS
    actions = actions + [rng.choice(singles) for _ in range(count - len(actions))]
    rng.shuffle(actions)
    starts = _flash_starts(rng)
    colours, shapes = rng.sample(list(COLOURS), count), rng.sample(SHAPES, count)
    horizontal = rng.random() < 0.5
    actors = []
    for lane, colour, shape, action in zip(rng.sample(range(3), count), colours, shapes, actions, strict=True):
        along, answer, forward = _ACTIONS[action](rng, starts)
        across = SIZE / 6 * (2 * lane + 1) + rng.uniform(-2, 2)
        path = [None if a is None else ((a, across) if horizontal else (across, a)) for a in along]
        heading = (("left", "right") if horizontal else ("up", "down"))[forward]
        actors.append(Actor(colour, shape, action, answer or heading, heading, path))
    return Scene(actors, horizontal, rng.randrange(15, 60))


# An action gives the coordinate along the lane in each frame, the answer to its question, and its heading.

_NEAR, _FAR = RADIUS + 1.0, SIZE - RADIUS - 1.0
_Along = tuple[list[float | None], str, bool]
_TIMES = np.linspace(0, 1, NUM_FRAMES)


def _still(rng: random.Random, starts: list[int]) -> _Along:
    cell = rng.randrange(3)
    return [SIZE / 6 * (2 * cell + 1) + rng.uniform(-3, 3)] * NUM_FRAMES, "still", False


def _travel(rng: random.Random, progress: np.ndarray) -> tuple[list[float | None], bool]:
    distance = rng.uniform(0.55, 1.0) * (_FAR - _NEAR)
    start = rng.uniform(_NEAR, _FAR - distance)
    forward = rng.random() < 0.5
    along = start + distance * (progress if forward else 1 - progress)
    return along.tolist(), forward


def _move(rng: random.Random, starts: list[int]) -> _Along:
    along, forward = _travel(rng, _TIMES)
    return along, "", forward


def _speed(rng: random.Random, starts: list[int]) -> _Along:
    faster, power = rng.random() < 0.5, rng.uniform(2.5, 3.5)
    along, forward = _travel(rng, _TIMES**power if faster else 1 - (1 - _TIMES) ** power)
    return along, "speeds up" if faster else "slows down", forward


def _bounce(rng: random.Random, starts: list[int]) -> _Along:
    # The distance covered, hence the speed, grows with the number of bounces: how often a wall is near says nothing
    # about it.
    bounces, width = rng.choice((1, 2, 3)), _FAR - _NEAR
    first, last = rng.uniform(0.35, 0.75), rng.uniform(0.35, 0.75)  # of the width: before the first, behind the last
    distance = (first + bounces - 1 + last) * width
    forward = rng.random() < 0.5
    unfolded = (1 - first) * width + distance * _TIMES  # a straight line; folded at the walls it becomes the path
    folded = width - np.abs(unfolded % (2 * width) - width)
    return (_NEAR + (folded if forward else width - folded)).tolist(), NUMBERS[bounces - 1], forward


def _appear(rng: random.Random, starts: list[int]) -> _Along:
    along, change = _still(rng, starts)[0], rng.randrange(10, NUM_FRAMES - 9)
    return [None] * change + along[change:], "appears", False


def _leave(rng: random.Random, starts: list[int]) -> _Along:
    along, answer, forward = _appear(rng, starts)
    return along[::-1], "leaves", forward


def _flash(rng: random.Random, starts: list[int]) -> _Along:
    start = starts.pop()
    along = _still(rng, starts)[0]
    shown = range(start, start + FLASH_FRAMES)
    return [a if frame in shown else None for frame, a in enumerate(along)], str(start), False


def _flash_starts(rng: random.Random) -> list[int]:
    """When each of two shapes shows: equally long, and at least six frames apart."""
    while True:
        starts = [rng.randrange(NUM_FRAMES - FLASH_FRAMES + 1) for _ in range(2)]
        if abs(starts[0] - starts[1]) >= 6:
            return starts


_ACTIONS: dict[str, Callable[[random.Random, list[int]], _Along]] = {
    "still": _still,
    "move": _move,
    "speed": _speed,
    "bounce": _bounce,
    "appear": _appear,
    "leave": _leave,
    "flash": _flash,
}


# Questions and captions ----------------------------------------------------------------------------------------------


# Pictures ------------------------------------------------------------------------------------------------------------
