"""The data of the gallery's page: everything that it shows of the runs, by benchmark, without local paths."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..eval.benchmarks.samples import LETTERS
from ..eval.report.compare import check_same_samples
from ..eval.store import Row, texts_of
from ..result_files.folders import UNITS
from ..result_files.formatting import main_measure
from ..video_source_pllava import is_address, public_name
from .answers import describe_answer, disagreement
from .frames import Clip, Strip, make_strips
from .runs import Run, find_runs, name_runs
from .tables import compare_runs, task_rows

VARIABLE = "window.PLLAVA_GALLERY = "  # the page's script, since pages that are opened from disk may not read files


@dataclass(frozen=True)
class Shown:
    """
    A benchmark in the gallery.

    Args:
        clips: The clips, each with the frames of one way of sampling.
        samples: For each sample, the number of its clip; and for each run, of the clip with the frames that it saw.
    """

    name: str
    runs: list[Run]
    clips: list[Clip]
    samples: list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Played:
    """
    What the page plays of a clip.

    Args:
        address: Relative to the page.
        start: The time in the clip, in seconds, at which the video begins.
        problem: Why it is not played.
    """

    address: str | None = None
    start: float = 0.0
    problem: str | None = None


@dataclass(frozen=True)
class Gallery:
    """
    The content of a gallery: what [`read_results`] returns.

    Args:
        shown: The benchmarks.
        clips: The clips of all benchmarks, each once.
        strips: The frames of each.
    """

    shown: list[Shown]
    clips: list[Clip]
    strips: list[Strip]

    def describe(self, played: Sequence[Played], chat: str | None = None) -> str:
        """
        Return the gallery's data as the script that the page loads.

        Args:
            played: What the page plays of each clip.
            chat: The address of a chat that the page links to.

        Raises:
            ValueError: if the runs of a benchmark cannot be compared.
        """
        described = dict(zip(self.clips, map(_describe_clip, self.clips, self.strips, played), strict=True))
        benchmarks = [_describe_benchmark(each, [described[clip] for clip in each.clips]) for each in self.shown]
        return write_script(", ".join(each["title"] for each in benchmarks), benchmarks, chat)

    def problems(self, played: Sequence[Played]) -> dict[str, str]:
        """Return what is wrong with clips, by their names."""
        every = zip(self.clips, self.strips, played, strict=True)
        found = ((clip.name, strip.problem or each.problem) for clip, strip, each in every)
        return {name: problem for name, problem in found if problem}


def read_results(folders: Sequence[Path], frames: Path) -> Gallery:
    """
    Read folders of results (see [`find_runs`]), and make the strips of their clips in the folder `frames`.

    Raises:
        ValueError: if there are no results, or the runs of a benchmark have different samples.
    """
    shown = [_collect_clips(name, runs) for name, runs in find_runs(folders).items()]
    clips = list(dict.fromkeys(clip for each in shown for clip in each.clips))
    return Gallery(shown, clips, make_strips(clips, frames))


def write_script(title: str, benchmarks: list[dict[str, Any]], chat: str | None = None) -> str:
    """Return a script with these benchmarks."""
    content = {
        "version": 1,
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "chat": chat,
        "benchmarks": benchmarks,
    }
    return f"{VARIABLE}{json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(',', ':'))};\n"


def _collect_clips(name: str, runs: list[Run]) -> Shown:
    """
    List the clips that the samples of a benchmark are about, once for each way in which the runs sampled them.

    Raises:
        ValueError: if the runs have other samples than the first.
    """
    for other in runs[1:]:
        check_same_samples(runs[0].folder, other.folder)
    numbers: dict[Clip, int] = {}
    paths = _readable_paths(runs)
    plain = next((run for run in runs if not run.settings.get("control")), runs[0])
    samples = []
    for rows in zip(*(run.published for run in runs), strict=True):

        def number(run: Run, control: str | None, row: Row = rows[0]) -> int:
            clip = Clip(
                public_name(row["video"]) if is_address(row["video"]) else row["video"],  # without secrets
                paths[row["video"]],
                row.get("start"),
                row.get("end"),
                *run.sampling,
                control,
            )
            return numbers.setdefault(clip, len(numbers))

        samples.append((number(plain, None), [number(run, run.settings.get("control")) for run in runs]))
    return Shown(name, runs, list(numbers), samples)


def _readable_paths(runs: list[Run]) -> dict[str, str]:
    """Return a path of each clip by its published name: of the first run whose path exists on this computer."""
    paths: dict[str, str] = {}
    for run in runs:
        for row, published in zip(run.rows, run.published, strict=True):
            known = paths.setdefault(published["video"], row["video"])
            if known != row["video"] and not is_address(known) and not Path(known).exists():
                paths[published["video"]] = row["video"]
    return paths


def _describe_benchmark(shown: Shown, clips: list[dict[str, Any]]) -> dict[str, Any]:
    runs, first = shown.runs, shown.runs[0]
    comparisons = compare_runs(runs)
    measure = main_measure(first.metrics)
    tasks, aspects, overall = task_rows(runs, measure)
    return {
        "name": shown.name,
        "title": first.metrics.get("title", shown.name),
        "measure": measure,
        "unit": UNITS.get(measure, ""),
        "runs": [
            {
                "name": name,
                "model": run.shown_settings()["model"],
                "settings": run.shown_settings(),
                "coverage": "{coverage:.1%} ({evaluated} of {expected})".format_map(run.metrics),
                "problems": run.problems(),
            }
            for name, run in zip(name_runs(runs), runs, strict=True)
        ],
        "tasks": tasks,
        "aspects": aspects,
        "overall": overall,
        "comparisons": comparisons,
        "clips": clips,
        "samples": [
            _describe_sample(shown.runs, rows, *numbers)
            for rows, numbers in zip(zip(*(run.published for run in runs), strict=True), shown.samples, strict=True)
        ],
    }


def _describe_clip(clip: Clip, strip: Strip, played: Played) -> dict[str, Any]:
    return {
        "name": clip.name,
        "start": clip.start,
        "end": clip.end,
        "seconds": strip.seconds,
        "strip": strip.frames,
        "video": played.address,
        "video_start": played.start,
        "problem": strip.problem or played.problem,
    }


def _describe_sample(runs: list[Run], rows: tuple[Row, ...], clip: int, clips: list[int]) -> dict[str, Any]:
    row = rows[0]
    answers = [
        describe_answer(each, run.rule, None if own == clip else own)
        for each, run, own in zip(rows, runs, clips, strict=True)
    ]
    return {
        "id": row["id"],
        "task": row["task"],
        "clip": clip,
        "questions": [_without_options(text, row.get("options", [])) for text in texts_of(row["question"])],
        "options": row.get("options", []),
        "reference": row["reference"],
        "disagreement": disagreement(rows, answers),
        "answers": answers,
    }


def _without_options(question: str, options: list[str]) -> str:
    """Return a question without the list of options that MVBench's reader ends it with: the page shows them itself."""
    listed = "\nOptions:\n" + "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))
    if not options or not question.endswith(listed.rstrip()):
        return question
    return question.removesuffix(listed.rstrip()).removeprefix("Question: ")
