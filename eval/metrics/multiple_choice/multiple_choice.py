"""`evaluate.load("eval/metrics/multiple_choice")`: see `pllava.eval.scoring.multiple_choice` and `legacy`."""

import datasets
import evaluate

from pllava.eval.scoring.legacy import legacy_correct
from pllava.eval.scoring.multiple_choice import multiple_choice_correct, with_letter
from pllava.eval.scoring.statistics import confidence_interval

_DESCRIPTION = """Accuracy of answers that name an option, as in MVBench.

Args:
    predictions: The answers.
    references: The texts of the right options.
    options: For each question, the texts of its options in the order of their letters.
    rule: "strict", or "legacy": the matcher of the original evaluation, which compares first words only.

Returns:
    accuracy, a fraction, and accuracy_ci, its 95 % interval.
"""


class MultipleChoice(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text, "options": datasets.Sequence(text)})
        return evaluate.MetricInfo(_DESCRIPTION, citation="", features=features, inputs_description=_DESCRIPTION)

    def _compute(self, predictions, references, options, rule="strict"):
        if rule not in ("strict", "legacy"):
            raise ValueError(f"rule must be strict or legacy, not {rule!r}")
        correct = [
            float(
                legacy_correct(prediction, with_letter(reference, choices))
                if rule == "legacy"
                else multiple_choice_correct(prediction, reference, choices)
            )
            for prediction, reference, choices in zip(predictions, references, options, strict=True)
        ]
        return {"accuracy": sum(correct) / len(correct), "accuracy_ci": confidence_interval(correct)}
