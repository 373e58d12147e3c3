"""The paper's claims beside the study's answers: the size of an effect, its interval over seeds, and a verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student_t

from ..settings import Claim, Side
from ..workshop import Workshop
from .measures import above_chance, measure

AGREES, DISAGREES, CANNOT_TELL = "agrees", "does not agree", "cannot tell"
LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """
    A claim and what the study found.

    Args:
        effects: By seed, in the claim's unit.
        mean, interval: Of the effects; the interval is Student's, over seeds.
        verdict: "agrees", "does not agree" or "cannot tell".
        why: In one sentence.
        fresh: Effects of the seeds that were not used before the claim was fixed.
        holds: Whether each of them is on the side of the verdict; None without fresh seeds or a verdict.
    """

    claim: Claim
    effects: dict[int, float]
    mean: float
    interval: tuple[float, float]
    verdict: str
    why: str
    fresh: dict[int, float]
    holds: bool | None


def judge(workshop: Workshop, claim: Claim, seeds: Sequence[int], fresh_seeds: Sequence[int] = ()) -> Verdict:
    """Compare the answers with a claim."""
    effects, fresh = ({seed: effect(workshop, claim, seed) for seed in each} for each in (seeds, fresh_seeds))
    interval = interval_of(list(effects.values()))
    verdict, why = decide(claim, interval)
    if claim.expect == "equal" and verdict == AGREES and not is_above_chance(workshop, claim, seeds):
        verdict, why = CANNOT_TELL, "the models are not clearly above chance"
    holds = None
    if fresh and verdict != CANNOT_TELL:
        holds = all(is_as_claimed(claim, value) == (verdict == AGREES) for value in fresh.values())
    return Verdict(claim, effects, fmean(effects.values()), interval, verdict, why, fresh, holds)


def is_above_chance(workshop: Workshop, claim: Claim, seeds: Sequence[int]) -> bool:
    """Whether all that a claim compares is more than guessing: two models that know nothing are equal, too."""
    sides = claim.more + claim.less
    above = [[_measure_side(above_chance, workshop, claim, side, seed) for seed in seeds] for side in sides]
    return all(interval_of(values)[0] > 0 for values in above)


def effect(workshop: Workshop, claim: Claim, seed: int) -> float:
    """Return the sum over the sides that should have more, minus that over those that should have less."""
    more, less = (
        [_measure_side(measure, workshop, claim, side, seed) for side in sides] for sides in (claim.more, claim.less)
    )
    return sum(more) - sum(less)


def _measure_side(function: Callable[..., float], workshop: Workshop, claim: Claim, side: Side, seed: int) -> float:
    run = workshop.study.run(claim.experiment, side.run, seed)
    return function(workshop, run, side.setting, side.measure)


def interval_of(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's interval of the mean of a value per seed; unbounded for a single one."""
    if len(values) < 2:
        return float("-inf"), float("inf")
    half = student_t.ppf((1 + LEVEL) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def is_as_claimed(claim: Claim, value: float) -> bool:
    return abs(value) <= claim.margin if claim.expect == "equal" else value > 0


def decide(claim: Claim, interval: tuple[float, float]) -> tuple[str, str]:
    """Return the verdict on a claim, and why."""
    low, high = interval
    if claim.expect == "equal":
        if -claim.margin <= low and high <= claim.margin:
            return AGREES, f"the whole interval lies within {claim.margin:g} of 0"
        if low > claim.margin or high < -claim.margin:
            return DISAGREES, f"the whole interval lies more than {claim.margin:g} from 0"
        return CANNOT_TELL, f"the interval reaches across {claim.margin:g} or -{claim.margin:g}"
    if low > 0:
        return AGREES, "the whole interval lies above 0"
    if high < 0:
        return DISAGREES, "the whole interval lies below 0"
    return CANNOT_TELL, "the interval contains 0"
