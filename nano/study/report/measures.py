"""Measures of a run, from its stored answers and the statistics of its visual tokens."""

from collections import defaultdict
from functools import reduce
from statistics import fmean

from ....eval import load_benchmark, load_prompts
from ....files import read_object
from ...world.questions import ORDERED_TYPES, TYPES, UNORDERED_TYPES
from ..asking import answers
from ..settings import Run, Setting
from ..tokens import FILE
from ..workshop import Workshop

GROUPS = {"all": TYPES, "ordered": ORDERED_TYPES, "unordered": UNORDERED_TYPES}
TITLES = {"all": "all types", "ordered": "questions of time", "unordered": "other questions", "caption": "captions"}
TOKENS, WORDS = "tokens.", "words"


def measure(workshop: Workshop, run: Run, setting: Setting, name: str) -> float:
    """
    Return a measure of a run.

    Args:
        name: A type of question, for the per cent of exact answers; "all", "ordered" or "unordered", for the mean of
            the types in a group; "words", the mean length of a caption; or a place in tokens.json, such as
            "tokens.after.dominant.pooled".

    Raises:
        ValueError: if there were no such questions.
    """
    if name.startswith(TOKENS):
        statistics = read_object(workshop.folder_of(run) / FILE)
        return reduce(dict.__getitem__, name.removeprefix(TOKENS).split("."), statistics)
    if name == WORDS:
        rows = answers(workshop, run, setting)
        return fmean(len(row["prediction"].split()) for row in rows if row["task"] == "caption")
    return fmean(_accuracy(workshop, run, setting, name).values())


def above_chance(workshop: Workshop, run: Run, setting: Setting, name: str) -> float:
    """Return a measure of accuracy less that of guessing, which is 0 for captions."""
    choices = load_benchmark("nano", load_prompts()).choices
    accuracy = _accuracy(workshop, run, setting, name)
    return fmean(value - (100 / choices[kind] if kind in choices else 0) for kind, value in accuracy.items())


def _accuracy(workshop: Workshop, run: Run, setting: Setting, name: str) -> dict[str, float]:
    """Return the per cent of exact answers for each type of question that a measure is the mean of."""
    correct: dict[str, list[bool]] = defaultdict(list)
    for row in answers(workshop, run, setting):
        correct[row["task"]].append(row["correct"])
    kinds = [kind for kind in GROUPS.get(name, (name,)) if kind in correct]
    if not kinds:
        raise ValueError(f"There are no questions for the measure {name!r}; there are {sorted(correct)}")
    return {kind: 100 * fmean(correct[kind]) for kind in kinds}


def measure_seeds(workshop: Workshop, experiment: str, label: str, setting: Setting, name: str) -> list[float]:
    """Return a measure of an experiment's run for each of the study's seeds."""
    study = workshop.study
    return [measure(workshop, study.run(experiment, label, seed), setting, name) for seed in study.seeds]
