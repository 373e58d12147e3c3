"""`evaluate.load("eval/metrics/caption")`: see `pllava.eval.scoring.captions`."""

from statistics import fmean

import datasets
import evaluate

from pllava.eval.scoring.captions import caption_scores

_DESCRIPTION = """CIDEr and ROUGE-L of captions.

Args:
    predictions: The captions.
    references: For each caption, a list of the captions that it is compared with.

Returns:
    cider, 0 to 10, and rouge_l, 0 to 1: means over the captions.
"""


class Caption(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(_DESCRIPTION, citation="", features=features, inputs_description=_DESCRIPTION)

    def _compute(self, predictions, references):
        return {name: fmean(values) for name, values in caption_scores(predictions, references).items()}
