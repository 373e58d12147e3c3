"""Scoring rules, some of them compared with recordings of the original's code (`recordings/README.md`)."""

import json
from pathlib import Path

import evaluate
import pytest

from pllava.eval.scoring.captions import caption_scores
from pllava.eval.scoring.judge_replies import average_replies, parse_grade
from pllava.eval.scoring.legacy import legacy_correct, legacy_judged, legacy_mvbench
from pllava.eval.scoring.multiple_choice import multiple_choice_correct, option_named, with_letter
from pllava.eval.scoring.score import exactly_correct
from pllava.eval.scoring.statistics import confidence_interval, paired_p_value

ROOT = Path(__file__).resolve().parents[2]
RECORDED = json.loads((ROOT / "tests" / "recordings" / "scoring.json").read_text())

# The recorded answers that the strict rule scores differently, and why the original is wrong
DIFFERENCES = {
    " (A) x": "a space in front does not make it another answer",
    "A: Opened": "neither does a colon after the letter",
    "Answer: (A)": "the option is named, though not in the first word",
    "A man opens": "the article is not an option's letter",
    "The answer is (A)": "the option is named, though not in the first word",
    "Opened the door.": "the option's own words name it",
    "(A)(B)": "two options are named, so none is chosen",
    "(H) x": "an eighth option can be right",
    "H": "an eighth option can be right",
}


def make_options(recorded):
    """Return eight options and the right one. The recordings have only the right one's text."""
    letter, text = recorded["gt"][1], recorded["gt"][4:]
    return [text if each == letter else f"other {each}" for each in "ABCDEFGH"], text


@pytest.mark.parametrize("recorded", RECORDED["check_ans"], ids=lambda each: repr(each["pred"]))
def test_legacy_correct_equals_the_original(recorded):
    assert legacy_correct(recorded["pred"], recorded["gt"]) == recorded["value"]


@pytest.mark.parametrize("recorded", RECORDED["check_ans"], ids=lambda each: repr(each["pred"]))
def test_strict_rule_differs_only_where_the_original_is_wrong(recorded):
    choices, right = make_options(recorded)
    strict = multiple_choice_correct(recorded["pred"], right, choices)
    assert (strict != recorded["value"]) == (recorded["pred"] in DIFFERENCES), recorded


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("(B) Ran.", 1),
        ("b", 1),
        ("(c", 2),
        ("B Ran.", 1),
        ("C he sat", None),  # a letter and other words than its option's
        ("Ran", 1),
        ("  ran. ", 1),
        ("I think it is (D), since he sat down.", 3),
        ("(A) or (B)", None),
        ("A, B", None),
        ("(A), since (B) never happens.", 0),  # the answer begins with its choice
        ("(B) (B)", 1),
        ("(E) Flew.", None),  # no such option
        ("Both (A) and (B)", None),
        ("A", 0),
        ("", None),
        ("(", None),
        ("None of these.", None),
        ("a man ran", None),
    ],
)
def test_option_named(answer, named):
    assert option_named(answer, ["Stood up.", "Ran.", "Fell.", "Sat down."]) == named


def test_option_named_if_options_are_letters():
    """As in MVBench's task Character Order."""
    assert option_named("(A) l", ["l", "b", "a"]) == 0
    assert option_named("(B) b.", ["l", "b", "a"]) == 1
    assert option_named("(C) a", ["l", "b", "a"]) == 2


def test_option_named_if_options_are_equal_needs_a_letter():
    assert option_named("two", ["two", "two"]) is None
    assert option_named("(B) two", ["two", "two"]) == 1


def test_with_letter_rejects_an_unknown_option():
    with pytest.raises(ValueError, match="'four' is not among"):
        with_letter("four", ["one", "two"])


def test_exactly_correct():
    assert exactly_correct(" The red  ring.", "the red ring")
    assert not exactly_correct("the ring", "the red ring")
    assert not exactly_correct("", "")


def test_legacy_mvbench_equals_the_original():
    recorded = RECORDED["mvbench_save_results"]
    table, counts = legacy_mvbench(recorded["result_list"])
    assert counts == recorded["acc_dict"]
    assert table == pytest.approx(recorded["upload_leaderboard"])
    assert list(table) == list(recorded["upload_leaderboard"])


def parse_like_the_original(reply, aspect):
    """A reply that is not a grade counts as wrong with score 0."""
    try:
        return parse_grade(reply, aspect)
    except ValueError:
        return {"pred": "no", "score": 0}


def test_legacy_judged_equals_the_original_for_videoqa():
    recorded = RECORDED["videoqabench"]
    grades = [parse_like_the_original(reply, "answer") for reply in recorded["judge_replies"]]
    table, counts = legacy_judged(
        (item["task_type"], each["pred"] == "yes", each["score"])
        for item, each in zip(recorded["items"], grades, strict=True)
    )
    assert counts == recorded["dumped"]["all_results.json"]["acc_dict"]
    for name, value in recorded["dumped"]["upload_leaderboard.json"].items():
        assert table[name] == pytest.approx(value)


def test_legacy_judged_equals_the_original_for_vcgbench():
    recorded = RECORDED["vcgbench_last_wrong"]["dumped"]
    results = recorded["final_results-gpt-3.5-turbo-0125.json"]
    grades = [(aspect, score) for each in results["result_list"] for aspect, score in each["scores"].items()]
    table, counts = legacy_judged((aspect, score > 3, score) for aspect, score in grades)
    assert counts == results["acc_dict"]
    for name, value in recorded["upload_leaderboard-gpt-3.5-turbo-0125.json"].items():
        assert table[name] == pytest.approx(value)


# --- a judge's replies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "aspect", "read"),
    [
        ('{"score": 4}', "detail", {"score": 4}),
        ("{'score': 4.8}", "detail", {"score": 4.8}),
        ("{'pred': 'yes', 'score': 5}", "answer", {"pred": "yes", "score": 5}),
        ('```json\n{"pred": "no", "score": 0}\n```', "answer", {"pred": "no", "score": 0}),
        ('{"score": 4, "reason": "it fits"}', "detail", {"score": 4, "reason": "it fits"}),
    ],
)
def test_parse_grade(reply, aspect, read):
    assert parse_grade(reply, aspect) == read


@pytest.mark.parametrize(
    ("reply", "aspect"),
    [
        ("", "detail"),
        ("garbage", "detail"),
        ('{"score": 7}', "detail"),
        ('{"score": -1}', "detail"),
        ('{"score": "4"}', "detail"),
        ('{"score": true}', "detail"),
        ('{"score": NaN}', "detail"),
        ('{"score": 4', "detail"),
        ('{"score": 4} Good answer!', "detail"),
        ('The model says: {"score": 5}', "detail"),
        ('{"score": 4, "why": "it fits"}', "detail"),
        ('{"score": 4, "reason": ["it fits"]}', "detail"),
        ('{"reason": "it fits"}', "detail"),
        ("[4]", "detail"),
        ("4", "detail"),
        ('{"score": 4}', "answer"),
        ('{"pred": "Yes", "score": 4}', "answer"),
        ('{"pred": "maybe", "score": 4}', "answer"),
        ("{'score': __import__('os').getcwd()}", "detail"),
        ("[" * 100_000, "detail"),
    ],
)
def test_parse_grade_rejects(reply, aspect):
    with pytest.raises(ValueError, match="not a grade"):
        parse_grade(reply, aspect)


def test_average_replies():
    replies = ["{'score': 4}", "{'score': 2}", "{'score': 5}", "garbage"]
    found = average_replies(replies, ["detail", "detail", "context", "context"])
    assert found == {"score": 4.0, "aspects": {"detail": 3, "context": 5}, "failed": 1, "coverage": 0.75}
    assert (
        average_replies(['{"pred": "yes", "score": 5}', '{"pred": "no", "score": 1}'], ["answer"] * 2)["accuracy"]
        == 0.5
    )


# --- captions --------------------------------------------------------------------------------------------------------


def test_caption_scores():
    references = ["A red ring bounces off the wall.", "A dog runs along the beach.", "Two cars race at night."]
    same = caption_scores(references, references)
    other = caption_scores(["A blue ring bounces.", "A dog runs along the beach", "Someone cooks."], references)
    assert same["rouge_l"] == [1, 1, 1]
    assert same["cider"] == pytest.approx([10, 10, 10])
    assert 0 < other["cider"][0] < other["cider"][1] == pytest.approx(10)
    assert other["cider"][2] == other["rouge_l"][2] == 0
    assert caption_scores(["two cars"], [["a dog", "two cars"]])["rouge_l"] == [1]
    assert caption_scores([], []) == {"cider": [], "rouge_l": []}


# --- statistics ------------------------------------------------------------------------------------------------------


def test_confidence_interval_has_its_nominal_coverage():
    import numpy as np

    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        low, high = confidence_interval((rng.random(100) < 0.6).astype(float).tolist(), seed=trial)
        inside += low <= 0.6 <= high
    assert 88 <= inside <= 100


def test_clusters_widen_the_interval():
    values = [1.0, 0.0] * 10
    by_itself = confidence_interval([value for value in values for _ in range(10)])
    by_clip = confidence_interval([v for v in values for _ in range(10)], [c for c in range(20) for _ in range(10)])
    assert by_clip[1] - by_clip[0] > 2 * (by_itself[1] - by_itself[0])


def test_confidence_interval_of_constant_values():
    low, high = confidence_interval([1.0] * 100)
    assert (round(low, 4), high) == (0.9638, 1.0)  # Clopper and Pearson's of 100 in 100
    assert confidence_interval([0.0] * 100)[1] == pytest.approx(1 - low)
    assert confidence_interval([3.0, 3.0]) == (3, 3)
    assert confidence_interval([1.0]) is None
    assert confidence_interval([]) is None


def test_confidence_interval_of_a_mean_of_group_means():
    values, groups = [5.0, 4.0] * 100 + [1.0, 0.0] * 10, ["a"] * 200 + ["b"] * 20
    low, high = confidence_interval(values, groups=groups)
    assert 2.2 < low < (4.5 + 0.5) / 2 < high < 2.8  # the mean of all values is 4.1


def test_paired_p_value():
    assert paired_p_value([1.0] * 12) < 0.01
    assert paired_p_value([1.0, -1.0] * 20) == 1
    assert paired_p_value([0.0] * 5) == 1
    assert (
        paired_p_value([1.0] * 40, ["one clip"] * 40) == 1
    )  # one clip is no evidence, whatever the number of questions


# --- `evaluate` modules ----------------------------------------------------------------------------------------------


def test_evaluate_modules(monkeypatch):
    monkeypatch.chdir(ROOT)
    choice = evaluate.load("eval/metrics/multiple_choice")
    answers = {"predictions": ["(A) x", "A man", "(B)"], "references": ["x", "x", "x"], "options": [["x", "y"]] * 3}
    assert choice.compute(**answers)["accuracy"] == pytest.approx(1 / 3)
    assert choice.compute(**answers, rule="legacy")["accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="strict or legacy"):
        choice.compute(**answers, rule="lenient")
    judged = evaluate.load("eval/metrics/judged")
    replies = ["{'score': 4}", "garbage", "{'score': 3}"]
    found = judged.compute(predictions=replies, references=["detail", "context", "detail"])
    assert found == {"score": 3.5, "aspects": {"detail": 3.5}, "failed": 1, "coverage": pytest.approx(2 / 3)}
    captions = evaluate.load("eval/metrics/caption")
    found = captions.compute(predictions=["a dog runs", "a cat"], references=[["a dog runs"], ["a cat"]])
    assert found == {"cider": pytest.approx(7.5, abs=3), "rouge_l": 1}
