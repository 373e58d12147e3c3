"""`evaluate.load("eval/metrics/judged")`: see `pllava.eval.scoring.judge_replies`."""

import datasets
import evaluate

from pllava.eval.scoring.judge_replies import average_replies

_DESCRIPTION = """Accuracy and scores from the replies of a judge, as in MSVD-QA or VCGBench.

Args:
    predictions: The judge's replies as text.
    references: What each reply grades: "answer" ({"pred": "yes" or "no", "score": 0 to 5}), or an aspect of VCGBench
        ({"score": 0 to 5}): correctness, detail, context, temporal, consistency.

Returns:
    score, the mean of the aspects' means; aspects, the mean of each; accuracy, if there are grades of "answer";
    failed, the number of replies that are not grades, which are left out of the means; coverage, the fraction of
    replies that are grades.
"""


class Judged(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("string")))
        return evaluate.MetricInfo(_DESCRIPTION, citation="", features=features, inputs_description=_DESCRIPTION)

    def _compute(self, predictions, references):
        return average_replies(predictions, references)
