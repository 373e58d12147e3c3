"""`evaluate.load("eval/metrics/multiple_choice")`: see `pllava.eval.scoring`, whose functions these are."""

import datasets
import evaluate

from pllava.eval.scoring.multiple_choice import legacy_correct, multiple_choice_correct, with_letter
from pllava.eval.scoring.statistics import confidence_interval

_DESCRIPTION = """Accuracy of answers that name an option, as in MVBench.

Args:
    predictions: The answers.
    references: The right options' texts.
    options: The texts to choose from, in the order of their letters.
    rule: "strict", or "legacy": the matcher of the original evaluation, which compares first words only.

Returns:
    accuracy, a fraction, and accuracy_ci, its 95 % interval.
"""


class MultipleChoice(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "options": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions, references, options, rule="strict"):
        if rule not in ("strict", "legacy"):
            raise ValueError(f"The rule is strict or legacy; got {rule!r}")
        right = [
            legacy_correct(prediction, with_letter(reference, among))
            if rule == "legacy"
            else multiple_choice_correct(prediction, reference, among)
            for prediction, reference, among in zip(predictions, references, options, strict=True)
        ]
        return {
            "accuracy": sum(right) / len(right),
            "accuracy_ci": confidence_interval([float(each) for each in right]),
        }
