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
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

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


def _row(kind: str, question: str, answer: str) -> dict[str, str]:
    return {"type": kind, "question": question, "answer": answer}


def questions(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """
    What can be asked about a scene, in a random order: `{"type", "question", "answer"}`. What a shape does is asked of
    every shape, the rest once.
    """
    asked = []

    def ask(kind: str, question: str, answer: str) -> None:
        asked.append(_row(kind, question, answer))

    either = "left or right" if scene.horizontal else "up or down"
    for actor in scene.acting("move", "speed"):
        ask("direction", f"Does the {actor.name} move {either}?", actor.heading)
    for actor in scene.acting("speed"):
        ask("speed", f"Does the {actor.name} speed up or slow down?", f"it {actor.answer}")
    for actor in scene.acting("bounce"):
        ask("bounces", f"How many times does the {actor.name} bounce?", actor.answer)
    if flashes := scene.acting("flash"):
        first, second = sorted(flashes, key=lambda actor: int(actor.answer))
        one, other = rng.sample((first, second), 2)
        ask("order", f"Which shows first, the {one.name} or the {other.name}?", f"the {first.name}")
    appearing, leaving = scene.acting("appear"), scene.acting("leave")
    if appearing and leaving:
        right, wrong = rng.choice(appearing), rng.choice(leaving)
        one, other = rng.sample((right, wrong), 2)
        ask("change", f"Which appears, the {one.name} or the {other.name}?", f"the {right.name}")
    else:
        for actor in appearing + leaving:
            ask("change", f"Does the {actor.name} appear or leave?", f"it {actor.answer}")

    actor = rng.choice(scene.actors)
    ask("colour", f"What colour is the {actor.shape}?", actor.colour)
    actor = rng.choice(scene.actors)
    ask("shape", f"What shape is {actor.colour}?", actor.shape)
    ask("count", "How many shapes are there in all?", NUMBERS[len(scene.actors) - 1])
    for actor in scene.acting("still", "appear", "leave", "flash"):
        ask("position", f"Where is the {actor.name}?", _place(*next(point for point in actor.path if point)))
    rng.shuffle(asked)
    return asked


def exercises(scene: Scene) -> list[dict[str, str]]:
    """
    For learning only: what each shape does ("action"), and where along its lane it is at eight moments, on a grid of
    `GRID` cells ("trace"). Who can tell has what the other questions need, and one trace teaches as much about time as
    a dozen of them.
    """
    rows = []
    for actor in scene.actors:
        points = [actor.path[frame] for frame in range(2, NUM_FRAMES, NUM_FRAMES // 8)]
        cells = [str(_cell(point[0 if scene.horizontal else 1])) if point else "none" for point in points]
        rows.append(_row("trace", f"Trace the {actor.name}.", " ".join(cells)))
        rows.append(_row("action", f"What does the {actor.name} do?", f"it {_does(actor)}"))
    return rows


def image_questions(scene: Scene, frame: int, rng: random.Random) -> list[dict[str, str]]:
    """
    What can be asked about one frame as an image, of the shapes that are to be seen in it, and, last, its caption.
    """
    seen = [actor for actor in scene.actors if actor.path[frame] is not None]
    asked = [_row("count", "How many shapes are there?", ("none", *NUMBERS)[len(seen)])]
    for actor in seen:
        x, y = actor.path[frame]
        asked += [
            _row("colour", f"What colour is the {actor.shape}?", actor.colour),
            _row("shape", f"What shape is {actor.colour}?", actor.shape),
            _row("position", f"Where is the {actor.name}?", _place(x, y)),
            _row("grid", f"Where exactly is the {actor.name}?", f"column {_cell(x)}, row {_cell(y)}"),
        ]
    rng.shuffle(asked)
    things = [f"a {actor.name} at the {_place(*actor.path[frame])}" for actor in _in_caption_order(seen)]
    return asked + [_row("caption", IMAGE_CAPTION_QUESTION, _sentence(things or ["nothing"]))]


def _place(x: float, y: float) -> str:
    row, column = ROWS[int(3 * y / SIZE)], COLUMNS[int(3 * x / SIZE)]
    return row if column == "centre" else f"{row} {column}"


def _cell(coordinate: float) -> int:
    return int(GRID * coordinate / SIZE) + 1


def caption(scene: Scene) -> str:
    """One sentence that says what every shape does, in the order of `SHAPES`."""
    return _sentence([f"a {actor.name} {_does(actor)}" for actor in _in_caption_order(scene.actors)])


def _in_caption_order(actors: list[Actor]) -> list[Actor]:
    return sorted(actors, key=lambda actor: SHAPES.index(actor.shape))


def _sentence(clauses: list[str]) -> str:
    text = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
    return text[0].upper() + text[1:] + "."


def _does(actor: Actor) -> str:
    times = {"one": "once", "two": "twice", "three": "three times"}
    return {
        "still": "stays still",
        "move": f"moves {actor.heading}",
        "speed": f"moves {actor.heading} and {actor.answer}",
        "bounce": f"bounces {times.get(actor.answer)}",
        "appear": "appears",
        "leave": "leaves",
        "flash": "shows for a moment",
    }[actor.action]


# Pictures ------------------------------------------------------------------------------------------------------------


def draw(scene: Scene) -> np.ndarray:
    """The scene's frames, `(NUM_FRAMES, SIZE, SIZE, 3)` uint8 RGB."""
    return np.stack([draw_frame(scene, frame) for frame in range(NUM_FRAMES)])


def draw_frame(scene: Scene, frame: int) -> np.ndarray:
    """One frame, `(SIZE, SIZE, 3)` uint8 RGB."""
    image = Image.new("RGB", (SIZE, SIZE), (scene.ground,) * 3)
    canvas = ImageDraw.Draw(image)
    for actor in scene.actors:
        if (centre := actor.path[frame]) is not None:
            _draw_shape(canvas, actor, *centre)
    return np.asarray(image)


def _draw_shape(canvas: ImageDraw.ImageDraw, actor: Actor, x: float, y: float) -> None:
    fill, r, arm = COLOURS[actor.colour], RADIUS, RADIUS / 3
    if actor.shape == "ring":
        canvas.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=6)
    elif actor.shape == "square":
        canvas.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=fill)
    elif actor.shape == "triangle":
        canvas.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
    else:
        canvas.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
        canvas.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Encodes `(frames, height, width, 3)` uint8 RGB as an H.264 mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        stream.codec_context.thread_count = 1  # a clip is too small to share out
        for frame in frames:
            # Converted here: left to the encoder, the same frames give files that differ by a few bytes each time
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=stream.pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def video_questions(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """All that is asked about a video: its questions and, last, its caption (type "caption")."""
    return questions(scene, rng) + [_row("caption", CAPTION_QUESTION, caption(scene))]


def clip(seed: int, index: int) -> tuple[Scene, list[dict[str, str]]]:
    """Clip number `index` of the world of `seed`: its scene and what is asked about it. The same for all time."""
    rng = random.Random(f"{seed}/{index}")
    scene = sample_scene(rng)
    return scene, video_questions(scene, rng)
