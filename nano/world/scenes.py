"""
The synthetic world of nano: scenes of one to three coloured shapes on a dark ground, four seconds long.

Each shape stays in its own lane (one of three rows, or of three columns) and does one thing: it stays still, moves,
speeds up or slows down, bounces off the walls, appears, leaves, or shows for a moment. The distributions are symmetric
in time, and the answers to each question are balanced: a clip played backwards is as likely as the clip itself, and
has the opposite answer. Without the frames, or with frames out of order, a model can only guess.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

SIZE = 96  # pixels of a side
NUM_FRAMES = 32
FPS = 8
RADIUS = 13  # pixels from a shape's centre to its edge
FLASH_FRAMES = 9  # for which a shape shows that shows for a moment

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
MOST_SHAPES = 3  # a lane for each
MOTIONS = ("move", "speed", "bounce")


@dataclass
class Actor:
    """One shape: its looks, and its centre in each frame (`None` where it is not visible)."""

    colour: str
    shape: str
    action: str
    answer: str  # to the question about its action: the direction, the number of bounces, ...
    heading: str  # the direction in which it moves first
    path: list[tuple[float, float] | None] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass
class Scene:
    """A clip before it is drawn: its shapes, whether their lanes are rows, and the ground's grey value (0..255)."""

    actors: list[Actor]
    horizontal: bool
    ground: int

    def acting(self, *actions: str) -> list[Actor]:
        return [actor for actor in self.actors if actor.action in actions]


def sample_scene(rng: random.Random, most_shapes: int = MOST_SHAPES) -> Scene:
    """Sample a scene. With three shapes at most, more than a third of all scenes have two or three moving ones."""
    count = rng.choice(range(1, most_shapes + 1))
    pairs = ([], [], [], ["flash", "flash"], ["appear", "leave"])
    actions = rng.choice(pairs) if count > 1 else []
    singles = ("still", "appear", "leave") + 8 * MOTIONS
    actions = actions + [rng.choice(singles) for _ in range(count - len(actions))]
    rng.shuffle(actions)
    flash_starts = _sample_flash_starts(rng)
    colours, shapes = rng.sample(list(COLOURS), count), rng.sample(SHAPES, count)
    horizontal = rng.random() < 0.5
    actors = []
    for lane, colour, shape, action in zip(rng.sample(range(3), count), colours, shapes, actions, strict=True):
        along, answer, forward = _ACTIONS[action](rng, flash_starts)
        across = SIZE / 6 * (2 * lane + 1) + rng.uniform(-2, 2)
        path = [None if a is None else ((a, across) if horizontal else (across, a)) for a in along]
        heading = (("left", "right") if horizontal else ("up", "down"))[forward]
        actors.append(Actor(colour, shape, action, answer or heading, heading, path))
    return Scene(actors, horizontal, rng.randrange(15, 60))


def _sample_flash_starts(rng: random.Random) -> list[int]:
    """Sample the first frames of two flashes, at least six frames apart."""
    while True:
        starts = [rng.randrange(NUM_FRAMES - FLASH_FRAMES + 1) for _ in range(2)]
        if abs(starts[0] - starts[1]) >= 6:
            return starts


# --- actions ---------------------------------------------------------------------------------------------------------

# The coordinate along the lane in each frame, the answer to the action's question (empty: the heading), and whether
# the shape moves forward first
_Track = tuple[list[float | None], str, bool]
_NEAR, _FAR = RADIUS + 1.0, SIZE - RADIUS - 1.0  # the walls, for a shape's centre
_TIMES = np.linspace(0, 1, NUM_FRAMES)


def _still(rng: random.Random, flash_starts: list[int]) -> _Track:
    cell = rng.randrange(3)
    return [SIZE / 6 * (2 * cell + 1) + rng.uniform(-3, 3)] * NUM_FRAMES, "still", False


def _move(rng: random.Random, flash_starts: list[int]) -> _Track:
    along, forward = _travel(rng, _TIMES)
    return along, "", forward


def _speed(rng: random.Random, flash_starts: list[int]) -> _Track:
    faster, power = rng.random() < 0.5, rng.uniform(2.5, 3.5)
    along, forward = _travel(rng, _TIMES**power if faster else 1 - (1 - _TIMES) ** power)
    return along, "speeds up" if faster else "slows down", forward


def _travel(rng: random.Random, progress: np.ndarray) -> tuple[list[float | None], bool]:
    distance = rng.uniform(0.55, 1.0) * (_FAR - _NEAR)
    start = rng.uniform(_NEAR, _FAR - distance)
    forward = rng.random() < 0.5
    return (start + distance * (progress if forward else 1 - progress)).tolist(), forward


def _bounce(rng: random.Random, flash_starts: list[int]) -> _Track:
    # The distance, and with it the speed, grows with the number of bounces, so that the share of frames near a wall
    # does not reveal this number
    bounces, width = rng.choice((1, 2, 3)), _FAR - _NEAR
    first, last = rng.uniform(0.35, 0.75), rng.uniform(0.35, 0.75)  # of the width: before the first, after the last
    distance = (first + bounces - 1 + last) * width
    forward = rng.random() < 0.5
    unfolded = (1 - first) * width + distance * _TIMES  # a straight line, which is folded at the walls
    folded = width - np.abs(unfolded % (2 * width) - width)
    return (_NEAR + (folded if forward else width - folded)).tolist(), NUMBERS[bounces - 1], forward


def _appear(rng: random.Random, flash_starts: list[int]) -> _Track:
    along, change = _still(rng, flash_starts)[0], rng.randrange(10, NUM_FRAMES - 9)
    return [None] * change + along[change:], "appears", False


def _leave(rng: random.Random, flash_starts: list[int]) -> _Track:
    return _appear(rng, flash_starts)[0][::-1], "leaves", False


def _flash(rng: random.Random, flash_starts: list[int]) -> _Track:
    start = flash_starts.pop()
    along = _still(rng, flash_starts)[0]
    shown = range(start, start + FLASH_FRAMES)
    return [a if frame in shown else None for frame, a in enumerate(along)], str(start), False


_ACTIONS: dict[str, Callable[[random.Random, list[int]], _Track]] = {
    "still": _still,
    "move": _move,
    "speed": _speed,
    "bounce": _bounce,
    "appear": _appear,
    "leave": _leave,
    "flash": _flash,
}
