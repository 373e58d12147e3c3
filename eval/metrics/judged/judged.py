"""`evaluate.load("eval/metrics/judged")`: see `pllava.eval.verdicts`, whose function this is."""

import datasets
import evaluate

from pllava.eval.scoring.judge_replies import mean_verdicts

_DESCRIPTION = """Accuracy and scores from the replies of a judge, as in MSVD-QA or VCGBench.

Args:
    predictions: The judge's replies, as it wrote them.
    references: What each is about: "answer" ({"pred": "yes" or "no", "score": 0 to 5}), or an aspect of VCGBench
        ({"score": 0 to 5}): correctness, detail, context, temporal, consistency.

Returns:
    score, the mean of the aspects' means; aspects; accuracy where there are verdicts on answers; failed, the number of
    replies that are no verdict, which are in no mean; coverage.
"""


class Judged(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        return mean_verdicts(predictions, references)
