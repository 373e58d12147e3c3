"""What the study trains, asks and judges, as data: `study.yaml`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ...eval import PLAIN, Variant
from ..training.recipe import Recipe

STUDY = Path(__file__).with_name("study.yaml")
IMAGE_MODEL, NOTHING = "image model", "nothing"
CLIPS, STILLS = "clips", "stills"


@dataclass(frozen=True)
class Run:
    """
    A model of stage 2.

    Args:
        seed: Of the clips, the weights that are not an image model's, and the order of training.
        size: A name in the recipe's `widths`.
        start: "image model", the result of stage 1; or "nothing": random weights, which are all trained, with as many
            operations as all stages.
        num_frames: Frames of a clip that the model reads.
        pooling: In the notation of `parse_pooling`.
        steps: Of stage 2.
        clips: Training clips.
    """

    seed: int
    size: str
    start: str
    num_frames: int
    pooling: str
    steps: int
    clips: int


@dataclass(frozen=True)
class Setting:
    """
    A way to ask a run.

    Args:
        about: "clips" or "stills".
        template: The name of a chat template; None is the one of training.
        alpha: The strength of LoRA, as a multiple of the one in training, which None is.
        pooling: None is the one of training; for stills that of stage 1.
    """

    about: str = CLIPS
    template: str | None = None
    alpha: float | None = None
    pooling: str | None = None

    def variant(self, training_alpha: float, still_pooling: str) -> Variant:
        pooling = still_pooling if self.about == STILLS else self.pooling
        if self.alpha is None and pooling is None:
            return PLAIN
        alpha = None if self.alpha is None else self.alpha * training_alpha
        return Variant(f"alpha={self.alpha} pooling={pooling}", alpha=alpha, pooling=pooling)


@dataclass(frozen=True)
class Experiment:
    """
    Runs that are compared, and how they are asked.

    Args:
        title, source: For the report; the source is the paper's figure or section.
        runs: By their labels, the values in which a run differs from the base.
        alphas: Strengths of LoRA, as multiples of the one in training.
        templates: Names of chat templates.
        poolings: Poolings that the trained model is given.
        stills: Whether questions about images are asked as well.
        norms: Whether the norms of visual tokens are measured.
    """

    title: str
    source: str
    runs: dict[str, dict[str, Any]]
    alphas: list[float] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    poolings: list[str] = field(default_factory=list)
    stills: bool = False
    norms: bool = False

    def settings(self) -> list[Setting]:
        """Return all ways in which the runs are asked."""
        about = (CLIPS, STILLS) if self.stills else (CLIPS,)
        return [
            *(Setting(each) for each in about),
            *(Setting(template=template) for template in self.templates),
            *(Setting(each, alpha=alpha) for each in about for alpha in self.alphas),
            *(Setting(pooling=pooling) for pooling in self.poolings),
        ]


@dataclass(frozen=True)
class Side:
    """
    Something that is measured, for a claim.

    Args:
        run: The label of the run in its experiment.
        setting: How it is asked.
        measure: See `measures.py`.
    """

    run: str
    setting: Setting
    measure: str

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Side":
        values = {"measure": "all", **values}
        return cls(values.pop("run"), measure=values.pop("measure"), setting=Setting(**values))


@dataclass(frozen=True)
class Claim:
    """
    What the paper says, as a difference that can be measured.

    Args:
        text: In words.
        experiment: Whose runs are compared.
        more, less: The sum of the first should be larger.
        unit: Of the difference.
        expect: "more", or "equal": the difference is within the margin.
        margin: In that unit.
    """

    text: str
    experiment: str
    more: list[Side]
    less: list[Side]
    unit: str = "points"
    expect: str = "more"
    margin: float = 0.0

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Claim":
        sides = {name: [Side.read(side) for side in values[name]] for name in ("more", "less")}
        return cls(**{**values, **sides})


@dataclass(frozen=True)
class Study:
    """
    Args:
        seeds: With which the study was made.
        fresh_seeds: With which its claims are checked again.
        stages: By their names in the recipe, the values of stages that are not the recipe's.
        base: The values of a [`Run`], but for the seed.
        held_out: Numbers of "clips" and of "stills" that are asked about, and their "seed".
        experiments: By name.
        claims: That are judged.
    """

    seeds: list[int]
    fresh_seeds: list[int]
    stages: dict[str, dict[str, Any]]
    base: dict[str, Any]
    held_out: dict[str, int]
    experiments: dict[str, Experiment]
    claims: list[Claim]

    def adapt(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the study's values."""
        changed = {name: replace(getattr(recipe, name), **values) for name, values in self.stages.items()}
        return replace(recipe, **changed)

    def run(self, experiment: str, label: str, seed: int) -> Run:
        """Return a run of an experiment."""
        return Run(seed, **{**self.base, **self.experiments[experiment].runs[label]})

    def runs(self, seed: int) -> dict[Run, list[Setting]]:
        """
        Return the runs of a seed, each with the ways in which it is asked: all or, for a fresh seed, those that claims
        compare.
        """
        found: dict[Run, list[Setting]] = {}
        for name, label, setting in self._claimed() if seed in self.fresh_seeds else self._all():
            settings = found.setdefault(self.run(name, label, seed), [])
            settings += [setting] if setting not in settings else []
        return found

    def _all(self) -> Iterator[tuple[str, str, Setting]]:
        for name, experiment in self.experiments.items():
            for label in experiment.runs:
                yield from ((name, label, setting) for setting in experiment.settings())

    def _claimed(self) -> Iterator[tuple[str, str, Setting]]:
        for claim in self.claims:
            yield from ((claim.experiment, side.run, side.setting) for side in claim.more + claim.less)

    def has_norms(self, run: Run) -> bool:
        """Whether an experiment measures the norms of a run's visual tokens."""
        return any(
            experiment.norms and run == self.run(name, label, run.seed)
            for name, experiment in self.experiments.items()
            for label in experiment.runs
        )


def read_study(file: Path = STUDY, quick: bool = False) -> Study:
    """
    Read the settings of a study.

    Args:
        quick: Take the values under `quick` where there are some: fewer seeds, steps, clips and runs. Claims about
            runs that are left out are not judged.

    Raises:
        ValueError: if a value is missing or unknown.
    """
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        quick_values = values.pop("quick")
        experiments = {name: Experiment(**each) for name, each in values.pop("experiments").items()}
        claims = [Claim.read(each) for each in values.pop("claims")]
        if quick:
            experiments = {
                name: replace(experiments[name], **shorter)
                for name, shorter in quick_values.pop("experiments").items()
            }
            values |= quick_values
        judged = [claim for claim in claims if is_judged(claim, experiments)]
        if not quick and judged != claims:
            wrong = next(claim for claim in claims if claim not in judged)
            raise KeyError(f"no experiment asks what is compared for {wrong.text!r}")
        return Study(**values, experiments=experiments, claims=judged)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a study like {STUDY}: {error}") from None


def is_judged(claim: Claim, experiments: dict[str, Experiment]) -> bool:
    """Whether an experiment asks all that a claim compares."""
    experiment = experiments.get(claim.experiment)
    return experiment is not None and all(
        side.run in experiment.runs and side.setting in experiment.settings() for side in claim.more + claim.less
    )
