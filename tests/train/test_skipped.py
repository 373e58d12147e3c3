"""When what cannot be read stops a run: a clear share of it, or too many in a row, and never chance."""

import os
import time

import numpy as np
import pytest
from datasets import Dataset

from pllava.data.mixture import as_mixture
from pllava.train.loader import stream
from pllava.train.loader.skipped import Skipped, SkippedExamples, read_skipped

RANKS, BATCH = 8, 16
GOOD = {"lost_turns": 0}
BAD = Skipped("source", "id", ["clip.mp4"], "unreadable", "it cannot be read")


def train(is_bad, steps, max_unreadable=0.2):
    """The step in which a job of eight processes ends, which log every step; none if it does not end."""
    ranks = [SkippedExamples(max_unreadable=max_unreadable) for _ in range(RANKS)]
    for step in range(steps):
        try:
            for rank, bad in zip(ranks, is_bad(step), strict=True):
                for one in bad:
                    rank.count(BAD if one else GOOD)
            seen, unreadable = (sum(getattr(rank, name) for rank in ranks) for name in ("seen", "unreadable"))
            for rank in ranks:
                rank.check(seen, unreadable)
        except RuntimeError:
            return step
    return None


@pytest.mark.parametrize("share", [0.1, 0.15])
@pytest.mark.parametrize("seed", range(3))
def test_a_share_below_the_limit_ends_no_run(share, seed):
    rng = np.random.default_rng(seed)
    assert train(lambda step: rng.random((RANKS, BATCH)) < share, steps=300) is None


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_a_share_above_the_limit_ends_a_run(share):
    rng = np.random.default_rng(0)
    assert train(lambda step: rng.random((RANKS, BATCH)) < share, steps=300) <= 2000 // (RANKS * BATCH)


def test_a_storage_that_dies_ends_a_run_soon():
    """After 50,000 rows, within twenty of a process."""
    dies = 50_000 // (RANKS * BATCH)
    assert dies <= train(lambda step: np.full((RANKS, BATCH), step >= dies), steps=dies + 10) <= dies + 1


def test_a_change_for_the_worse_is_not_outweighed_by_a_long_past():
    rng = np.random.default_rng(0)
    ended = train(lambda step: rng.random((RANKS, BATCH)) < (0.01 if step < 300 else 0.4), steps=400)
    assert 300 < ended < 310


@pytest.mark.parametrize(("max_unreadable", "row"), [(0.0, 20), (0.2, 20), (0.5, 40), (0.9, 263)])
def test_the_row_of_failures_that_ends_a_run_is_no_chance(max_unreadable, row):
    skipped = SkippedExamples(max_unreadable=max_unreadable)
    skipped.count(GOOD)
    with pytest.raises(RuntimeError, match=f"^{row} examples in a row could not be read.*clip.mp4.*it cannot be read"):
        for _ in range(row):
            skipped.count(BAD)


def test_a_resumed_run_is_judged_by_what_it_sees_itself():
    skipped = SkippedExamples()
    skipped.load_state_dict({"seen": 5000, "unreadable": 4000, "too_long": 0, "lost_turns": 0})
    skipped.check(5000, 4000)
    skipped.check(6000, 4100)
    with pytest.raises(RuntimeError, match="500 of the last 1000 examples"):
        skipped.check(7000, 4600)


def test_an_evaluation_ends_no_run():
    skipped = SkippedExamples(max_unreadable=None)
    for _ in range(300):
        skipped.count(BAD)
        skipped.check(skipped.seen, skipped.unreadable)
    too_long = SkippedExamples(max_unreadable=None)
    for _ in range(30):
        too_long.count(Skipped("source", "id", [], "too long", "too many tokens"))
    assert skipped.unreadable == 300 and too_long.too_long == 30


class Collator:
    """Decodes nothing; on two rows its worker hangs or crashes."""

    def __init__(self, file):
        self.skipped = SkippedExamples(file)

    def try_encode(self, row, seed):
        if row["id"] == "3":
            time.sleep(60)
        if row["id"] == "5":
            os.abort()
        return GOOD

    def pad(self, examples):
        return {}


def test_an_example_whose_decoding_hangs_or_crashes_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "DECODE_TIMEOUT", 1.0)
    rows = Dataset.from_dict({"source": ["mine"] * 8, "id": [str(n) for n in range(8)]})
    collator = Collator(tmp_path / "_skipped.jsonl")
    loader = stream.StreamLoader(stream.RowStream(as_mixture(rows), 0, 8), collator, batch_size=6, num_workers=2)
    batch = next(iter(loader))
    assert sorted(batch["id"]) == ["0", "1", "2", "4", "6", "7"]
    skipped = {one.id: one.error for one in read_skipped(collator.skipped.file)}
    assert skipped == {"3": "it took more than 1 seconds, and was given up", "5": "the worker ended (-6)"}
