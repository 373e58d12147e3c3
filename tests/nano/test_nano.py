"""nano: the synthetic world, its rendered files, and the checkpoint that was trained on it."""

import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest
from transformers import AutoProcessor

from pllava import NANO, load_model
from pllava.eval import LocalModel, load_benchmark, load_prompts
from pllava.eval import evaluate as run_benchmark
from pllava.files import read_lines, to_lines
from pllava.hub_cards.cards.model_card import build_model_card
from pllava.model_card_pllava import sign
from pllava.nano.evaluate import MAIN, SHUFFLED, VARIANTS, accuracy
from pllava.nano.world import drawing, questions, scenes
from pllava.nano.world.rendering import one_of_each_type, read_questions, render

CLIPS = 600


@pytest.fixture(scope="module")
def sampled():
    return [questions.clip(seed=3, index=index) for index in range(CLIPS)]


def actors_in(scene, text):
    return [actor for actor in scene.actors if actor.name in text]


def displacement(actor, scene):
    along = [point[0 if scene.horizontal else 1] for point in actor.path]
    return along[-1] - along[0]


def test_answers_follow_from_the_paths(sampled):
    """Derives every time-dependent answer from the positions of the shapes in the frames."""
    checked = Counter()
    for scene, asked in sampled:
        for row in asked:
            kind, answer = row["type"], row["answer"]
            actors = actors_in(scene, row["question"])
            if kind == "direction":
                forward = displacement(actors[0], scene) > 0
                assert answer == (("left", "right") if scene.horizontal else ("up", "down"))[forward]
            elif kind == "bounces":
                along = np.diff([point[0 if scene.horizontal else 1] for point in actors[0].path])
                turns = int((np.diff(np.sign(along[np.abs(along) > 1e-6])) != 0).sum())
                assert scenes.NUMBERS[turns - 1] == answer
            elif kind == "order":
                first = min(actors, key=lambda actor: next(i for i, point in enumerate(actor.path) if point))
                assert answer == f"the {first.name}"
            elif kind == "change" and len(actors) == 2:
                shown_at_the_end = next(actor for actor in actors if actor.path[-1])
                assert answer == f"the {shown_at_the_end.name}"
            elif kind == "speed":
                steps = np.abs(np.diff([point[0 if scene.horizontal else 1] for point in actors[0].path]))
                assert answer == ("it speeds up" if steps[-1] > steps[0] else "it slows down")
            elif kind == "count":
                assert answer == scenes.NUMBERS[len(scene.actors) - 1]
            else:
                continue
            checked[kind] += 1
    assert set(checked) == {"direction", "bounces", "order", "change", "speed", "count"}
    assert min(checked.values()) > 20


def test_listings_follow_from_the_paths(sampled, tmp_path):
    for scene, asked in sampled[:50]:
        listing = questions.video_listing(scene)["answer"].split(", ")
        for actor, item in zip(sorted(scene.actors, key=by_shape), listing, strict=True):
            assert item.startswith(f"{actor.name} ")
            *words, cells = re.fullmatch(r"\w+ \w+ (.+?) ((?:\d|none)(?: \d| none)*)", item).groups()
            phrase = next(phrase for phrase in captioned(asked) if phrase.startswith(actor.name))
            assert words[0].endswith(phrase.removeprefix(f"{actor.name} "))
            moments = [actor.path[frame] for frame in range(2, scenes.NUM_FRAMES, 4)]
            for point, cell in zip(moments, cells.split(), strict=True):
                assert in_cell(point and point[0 if scene.horizontal else 1], cell)
    render(tmp_path, clips=2, seed=3, listings=True)
    assert [row["type"] for row in read_questions(tmp_path)].count("listing") == 2


def test_listings_of_frames_follow_from_the_paths(sampled):
    for scene, _ in sampled[:50]:
        for frame in (0, 15, 31):
            visible = [actor for actor in sorted(scene.actors, key=by_shape) if actor.path[frame]]
            items = questions.image_listing(scene, frame)["answer"].split(", ")
            for actor, item in zip(visible, items, strict=False):
                x, y = actor.path[frame]
                *words, column, row = item.split()
                assert " ".join(words[:2]) == actor.name and in_cell(x, column) and in_cell(y, row)
                assert ("left" in words) == (x < scenes.SIZE / 3) and ("top" in words) == (y < scenes.SIZE / 3)
            assert items == ["none"] if not visible else len(items) == len(visible)


def by_shape(actor):
    return scenes.SHAPES.index(actor.shape)


def captioned(asked):
    """The phrases of a caption, without the articles."""
    return [phrase.removeprefix("a ") for phrase in re.split(r", | and (?=a )", asked[-1]["answer"].lower()[:-1])]


def in_cell(coordinate, cell):
    """Whether a cell of the grid, 12 pixels wide, has this coordinate; "none" has none."""
    return coordinate is None if cell == "none" else 12 * (int(cell) - 1) <= coordinate <= 12 * int(cell)


def test_one_of_each_type_keeps_one_question_of_a_clip_and_type(rendered):
    rows = read_questions(rendered)
    chosen = one_of_each_type(rows)
    kinds = {(row["video"], row["type"]) for row in rows}
    assert len(chosen) == len(kinds) < len(rows) and {(row["video"], row["type"]) for row in chosen} == kinds
    assert chosen == [row for row in rows if row in chosen]


def test_third_of_the_clips_has_two_moving_shapes(sampled):
    assert sum(len(scene.acting(*scenes.MOTIONS)) >= 2 for scene, _ in sampled) > CLIPS / 3


def test_answers_are_balanced(sampled):
    """No answer is much more frequent than the others, so that a model without the video can only guess."""
    answers, choices = defaultdict(Counter), load_benchmark("nano", load_prompts()).choices
    for _, asked in sampled:
        for row in asked:
            if row["type"] in choices:
                # For "Which shows first, the red ring or ...", count whether the first or the second option is right
                options = re.findall(r"the \w+ \w+", row["question"]) if row["answer"].startswith("the ") else []
                answers[row["type"]][options.index(row["answer"]) if options else row["answer"]] += 1
    for kind, counts in answers.items():
        assert counts.most_common(1)[0][1] / sum(counts.values()) < 1 / choices[kind] + 0.1, (kind, counts)
    kinds = {"bounces": scenes.NUMBERS, "colour": scenes.COLOURS, "shape": scenes.SHAPES, "count": scenes.NUMBERS}
    assert {kind: choices[kind] for kind in kinds} == {kind: len(values) for kind, values in kinds.items()}
    assert choices["position"] == len(scenes.ROWS) * len(scenes.COLUMNS)


def test_shapes_do_not_overlap(sampled):
    for scene, _ in sampled[:100]:
        across = sorted(next(p for p in actor.path if p)[1 if scene.horizontal else 0] for actor in scene.actors)
        assert all(b - a > 2 * scenes.RADIUS for a, b in zip(across, across[1:], strict=False))


def test_render_writes_h264_and_questions(rendered, tmp_path):
    rows = [json.loads(line) for line in (rendered / "questions.jsonl").read_text().splitlines()]
    assert all(set(row) == {"video", "type", "question", "answer"} for row in rows)
    assert len({row["video"] for row in rows}) == 48 == len(list((rendered / "clips").glob("*.mp4")))
    assert {row["type"] for row in rows} == {*questions.TYPES, "caption"}
    with av.open(str(rendered / rows[0]["video"])) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert sum(1 for _ in container.decode(stream)) == scenes.NUM_FRAMES
    render(tmp_path, clips=48, seed=1)
    assert (tmp_path / "questions.jsonl").read_bytes() == (rendered / "questions.jsonl").read_bytes()
    assert (tmp_path / rows[0]["video"]).read_bytes() == (rendered / rows[0]["video"]).read_bytes()


def test_draw_shows_the_scene():
    scene, _ = questions.clip(seed=3, index=0)
    frames = drawing.draw(scene)
    assert frames.shape == (scenes.NUM_FRAMES, scenes.SIZE, scenes.SIZE, 3) and frames.dtype == np.uint8
    for actor in scene.actors:
        for frame, point in zip(frames, actor.path, strict=True):
            if point:
                # near the top: the middle of a ring is empty
                assert (
                    tuple(frame[round(point[1]) - scenes.RADIUS + 4, round(point[0])]) == scenes.COLOURS[actor.colour]
                )


@pytest.fixture(scope="module")
def measured(rendered, tmp_path_factory):
    """nano's results for each type of question but captions, with the video and with its frames shuffled."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "clips").symlink_to(rendered / "clips")
    rows = [row for row in read_lines(rendered / "questions.jsonl") if row["type"] != "caption"]
    (folder / "questions.jsonl").write_text(to_lines(rows))
    model = LocalModel(load_model(NANO), AutoProcessor.from_pretrained(NANO))
    benchmark, variants = load_benchmark("nano", load_prompts()), [VARIANTS[MAIN], VARIANTS[SHUFFLED]]
    metrics = run_benchmark(benchmark, model, str(folder), folder / "results", variants)
    return {name: metrics[VARIANTS[name].name]["per_task"] for name in (MAIN, SHUFFLED)}


def test_nano_answers_held_out_questions(measured):
    """A small sample of the measurement of `python -m pllava.nano evaluate`."""
    scores = accuracy(measured[MAIN])
    assert scores["mean"] >= 90, scores


def test_nano_needs_the_order_of_the_frames(measured):
    ordered, shuffled = (
        accuracy({kind: each for kind, each in measured[name].items() if kind in questions.ORDERED_TYPES})
        for name in (MAIN, SHUFFLED)
    )
    assert shuffled["mean"] < ordered["mean"] - 25, (shuffled, ordered)


def test_card_is_the_one_that_is_written_now():
    written = sign(str(build_model_card(Path(NANO), "path/to/nano")))
    assert (Path(NANO) / "README.md").read_text() == written, "run `python -m pllava.nano evaluate`, or write the card"


def test_card_contains_the_evaluation():
    results = json.loads((Path(NANO) / "evaluation.json").read_text())
    card = (Path(NANO) / "README.md").read_text()
    for kind, value in results["accuracy"][MAIN].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {kind} |"))
        assert f" {value:.1f} |" in row
    assert (Path(NANO) / "model.safetensors").stat().st_size <= 12_000_000


def test_a_simpler_world_has_fewer_shapes(tmp_path):
    counts = [len(questions.clip(3, index, most_shapes=2)[0].actors) for index in range(60)]
    assert set(counts) == {1, 2}
    render(tmp_path, clips=4, seed=3, most_shapes=1, one_of_each=True)
    rows = read_lines(tmp_path / "questions.jsonl")
    assert {row["answer"] for row in rows if row["type"] == "count"} == {"one"}


def test_sample_scene_is_a_function_of_the_seed():
    assert scenes.sample_scene(random.Random(5)) == scenes.sample_scene(random.Random(5))
