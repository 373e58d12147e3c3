"""`evaluate.load("eval/metrics/caption")`: see `pllava.eval.captions`, whose function this is."""

from statistics import fmean

import datasets
import evaluate

from pllava.eval.scoring.captions import caption_scores

_DESCRIPTION = """CIDEr and ROUGE-L of captions.

Args:
    predictions: The captions.
    references: For each a list of the captions it is compared with.

Returns:
    cider, 0 to 10, and rouge_l, 0 to 1: means over the captions.
"""


class Caption(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions, references):
        return {name: fmean(values) for name, values in caption_scores(predictions, references).items()}
