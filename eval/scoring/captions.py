"""CIDEr (pycocoevalcap) and ROUGE-L (rouge-score) of captions."""

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
    Score each caption against one reference or several.

    Words are runs of letters and digits, in lower case; the COCO tools use a Java tokenizer, so their scores differ
    slightly. CIDEr weights n-grams by how rare they are among all references that are passed: the same caption gets
    another score in another set, and 0 in a set of one.

    Returns:
        One score per caption: "cider", from 0 to 10, and "rouge_l", the F measure of the best reference, from 0 to 1.
    """
    reference_lists = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    pairs = list(zip(predictions, reference_lists, strict=True))
    cider = CiderScorer()
    for prediction, known in pairs:
        cider += (_words(prediction), [_words(reference) for reference in known])
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    return {
        "cider": [float(score) for score in np.atleast_1d(cider.compute_score()[1])] if pairs else [],
        "rouge_l": [rouge.score_multi(known, prediction)["rougeL"].fmeasure for prediction, known in pairs],
    }


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
