"""What is asked about a scene, and the right answers."""

import random

from .world import (
    CAPTION_QUESTION,
    COLUMNS,
    GRID,
    IMAGE_CAPTION_QUESTION,
    NUM_FRAMES,
    NUMBERS,
    ROWS,
    SHAPES,
    SIZE,
    Actor,
    Scene,
    sample_scene,
)


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


def video_questions(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """All that is asked about a video: its questions and, last, its caption (type "caption")."""
    return questions(scene, rng) + [_row("caption", CAPTION_QUESTION, caption(scene))]


def clip(seed: int, index: int) -> tuple[Scene, list[dict[str, str]]]:
    """Clip number `index` of the world of `seed`: its scene and what is asked about it. The same for all time."""
    rng = random.Random(f"{seed}/{index}")
    scene = sample_scene(rng)
    return scene, video_questions(scene, rng)
