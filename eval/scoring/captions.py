"""Caption metrics, through the libraries that have them: CIDEr (pycocoevalcap) and ROUGE-L (rouge-score)."""

import re
from collections.abc import Sequence

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer
from rouge_score.rouge_scorer import RougeScorer

from ..store import Row


def score_captions(rows: Sequence[Row]) -> None:
    """Add "words" to each row, and "cider" and "rouge_l" to those with a reference, which are scored together."""
    for row in rows:
        row["words"] = len(row["prediction"].split())
    if with_reference := [row for row in rows if row["reference"]]:
        predictions, references = ([row[key] for row in with_reference] for key in ("prediction", "reference"))
        for name, scores in caption_scores(predictions, references).items():
            for row, score in zip(with_reference, scores, strict=True):
                row[name] = score


def caption_scores(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, list[float]]:
    """
    Scores of each caption against one reference or several.

    Words are what letters and digits make, in lower case; the COCO tools split words by a Java program, so that their
    figures differ a little. CIDEr weighs words by how rare they are in these references: its scores are those of this
    set, and of a set of one are 0.

    Returns:
        "cider", 0 to 10, and "rouge_l", the F measure from 0 to 1, the best one over the references.
    """
    every = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    scorer = CiderScorer()
    for prediction, known in zip(predictions, every, strict=True):
        scorer += (_words(prediction), [_words(reference) for reference in known])
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    return {
        "cider": [float(score) for score in np.atleast_1d(scorer.compute_score()[1])] if every else [],
        "rouge_l": [
            max(rouge.score(reference, prediction)["rougeL"].fmeasure for reference in known)
            for prediction, known in zip(predictions, every, strict=True)
        ],
    }


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
