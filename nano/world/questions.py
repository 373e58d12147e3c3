"""Questions about scenes of nano's world, and their answers. Each is a row `{"type", "question", "answer"}`."""

import random

from .scenes import COLUMNS, MOST_SHAPES, NUM_FRAMES, NUMBERS, ROWS, SHAPES, SIZE, Actor, Scene, sample_scene

ORDERED_TYPES = ("direction", "order", "bounces", "change", "speed")  # need the frames in their order
UNORDERED_TYPES = ("colour", "shape", "count", "position")
TYPES = ORDERED_TYPES + UNORDERED_TYPES
GRID = 8  # columns and rows of the grid of exact positions, for training only


def clip(seed: int, index: int, most_shapes: int = MOST_SHAPES) -> tuple[Scene, list[dict[str, str]]]:
    """Return the scene and the questions of clip number `index` for this seed. They never change."""
    rng = random.Random(f"{seed}/{index}")
    scene = sample_scene(rng, most_shapes)
    return scene, video_questions(scene, rng)


def video_questions(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """
    Return all questions about a video in random order, and, last, its caption. Questions about an action are asked of
    every shape, the others once.
    """
    rows = []

    def ask(kind: str, question: str, answer: str) -> None:
        rows.append(_row(kind, question, answer))

    directions = "left or right" if scene.horizontal else "up or down"
    for actor in scene.acting("move", "speed"):
        ask("direction", f"Does the {actor.name} move {directions}?", actor.heading)
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
        ask("position", f"Where is the {actor.name}?", _position(*next(point for point in actor.path if point)))
    rng.shuffle(rows)
    caption = _sentence([f"a {actor.name} {_action_phrase(actor)}" for actor in _in_caption_order(scene.actors)])
    return rows + [_row("caption", "Describe the video.", caption)]


def image_questions(scene: Scene, frame: int, rng: random.Random) -> list[dict[str, str]]:
    """Return all questions about one frame as an image, in random order, and, last, its caption."""
    visible = _visible(scene, frame)
    rows = [_row("count", "How many shapes are there?", ("none", *NUMBERS)[len(visible)])]
    for actor in visible:
        x, y = actor.path[frame]
        rows += [
            _row("colour", f"What colour is the {actor.shape}?", actor.colour),
            _row("shape", f"What shape is {actor.colour}?", actor.shape),
            _row("position", f"Where is the {actor.name}?", _position(x, y)),
            _row("grid", f"Where exactly is the {actor.name}?", f"column {cell(x)}, row {cell(y)}"),
        ]
    rng.shuffle(rows)
    things = [f"a {actor.name} at the {_position(*actor.path[frame])}" for actor in _in_caption_order(visible)]
    return rows + [_row("caption", "Describe the image.", _sentence(things or ["nothing"]))]


def image_listing(scene: Scene, frame: int) -> dict[str, str]:
    """
    Return an exercise for training only: where all shapes of a frame are, in words and on the grid. It has several
    times the answers of the questions in the same number of tokens, and teaches which place belongs to which shape.
    """
    items = []
    for actor in _in_caption_order(_visible(scene, frame)):
        x, y = actor.path[frame]
        items.append(f"{actor.name} {_position(x, y)} {cell(x)} {cell(y)}")
    return _row("listing", "List the shapes.", ", ".join(items) or "none")


def video_listing(scene: Scene) -> dict[str, str]:
    """
    Return an exercise for training only: of all shapes in a video, where they are first, what they do, and the grid
    cell along their lane at eight moments.
    """
    items = []
    for actor in _in_caption_order(scene.actors):
        points = [actor.path[frame] for frame in range(2, NUM_FRAMES, NUM_FRAMES // 8)]
        cells = [str(cell(point[0 if scene.horizontal else 1])) if point else "none" for point in points]
        first = _position(*next(point for point in actor.path if point))
        items.append(f"{actor.name} {first} {_action_phrase(actor)} {' '.join(cells)}")
    return _row("listing", "Trace the shapes.", ", ".join(items))


def _row(kind: str, question: str, answer: str) -> dict[str, str]:
    return {"type": kind, "question": question, "answer": answer}


def _visible(scene: Scene, frame: int) -> list[Actor]:
    return [actor for actor in scene.actors if actor.path[frame] is not None]


def _position(x: float, y: float) -> str:
    row, column = ROWS[int(3 * y / SIZE)], COLUMNS[int(3 * x / SIZE)]
    return row if column == "centre" else f"{row} {column}"


def cell(coordinate: float) -> int:
    return int(GRID * coordinate / SIZE) + 1


def _action_phrase(actor: Actor) -> str:
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


def _in_caption_order(actors: list[Actor]) -> list[Actor]:
    return sorted(actors, key=lambda actor: SHAPES.index(actor.shape))


def _sentence(clauses: list[str]) -> str:
    text = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
    return text[0].upper() + text[1:] + "."
