"""What a gallery says of results is what the results say: statuses, readings, grades, figures, frames."""

import json
from collections import Counter

import gallery_data
import pytest
from benchmark_folders import lines, metrics
from gallery_export import REASON, export, run
from PIL import Image
from transformers import AutoProcessor

import pllava
from pllava.eval import compare
from pllava.gallery.answers import describe_answer, disagreement
from pllava.gallery.frames import HEIGHT


def controls(evaluated):
    return [evaluated.nano / "nano" / name for name in ("reversed", "no_video")]


@pytest.fixture(scope="module")
def shown(evaluated, site, tmp_path_factory):
    """The benchmarks of a gallery with nano's world in two runs and two controls, and the published benchmarks."""
    folder = tmp_path_factory.mktemp("gallery")
    return folder, export(folder, site, evaluated.nano, evaluated.fewer, *controls(evaluated), evaluated.published)


def test_data_have_the_shape_that_the_page_reads(shown):
    for benchmark in shown[1].values():
        assert gallery_data.check_shape(benchmark, gallery_data.BENCHMARK) == []


def test_statuses_are_those_that_metrics_count(evaluated, shown):
    folders = {name: evaluated.published / name for name in ("mvbench", "vcgbench", "msvd_qa")}
    for name, folder in {"nano": evaluated.nano / "nano", **folders}.items():
        answers = [sample["answers"][0] for sample in shown[1][name]["samples"]]
        statuses, found = Counter(answer["status"] for answer in answers), metrics(folder)
        assert sum(statuses.values()) == found["expected"]
        assert statuses["unreadable"] == found["unreadable"]
        assert (
            sum(note == "The answer reached the length limit." for a in answers for note in a["notes"])
            == (found["truncated"])
        )
        if "accuracy" in found:
            scored = found["expected"] - found.get("judge_failed", 0)
            assert statuses["right"] == round(found["accuracy"] * scored)
            assert statuses["unscored"] == found.get("judge_failed", 0)
            assert statuses["scored"] == 0
        else:
            assert statuses["right"] == statuses["wrong"] == 0 < statuses["scored"]
    assert metrics(folders["mvbench"])["unreadable"] == 1
    assert metrics(folders["msvd_qa"])["judge_failed"] + metrics(folders["vcgbench"])["judge_failed"] > 0


def test_rows_have_the_values_and_intervals_of_metrics_json(evaluated, shown):
    _, benchmarks = shown
    for index, folder in enumerate([evaluated.nano, evaluated.fewer]):
        found = metrics(folder / "nano")
        for row in benchmarks["nano"]["tasks"]:
            task = found["per_task"][row["name"]]
            assert row["runs"][index]["value"] == 100 * task["accuracy"]
            assert row["runs"][index]["interval"] == (task["accuracy_ci"] and [100 * x for x in task["accuracy_ci"]])
            assert row["samples"] == task["expected"]
            assert row["chance"] == (100 * task["chance"] if "chance" in task else None)
        assert benchmarks["nano"]["overall"]["runs"][index]["value"] == 100 * found["accuracy"]
    assert [run["name"] for run in benchmarks["nano"]["runs"]] == [
        "nano (frames 16)",
        "nano (frames 8)",
        "nano, frames reversed",
        "nano, no video",
    ]
    aspects = benchmarks["vcgbench"]["aspects"]
    graded = metrics(evaluated.published / "vcgbench")["aspects"]
    assert {row["name"]: row["runs"][0]["value"] for row in aspects[:-1]} == {
        name: aspect["score"] for name, aspect in graded.items()
    }
    assert benchmarks["vcgbench"]["unit"] == "0 to 5" and benchmarks["nano"]["unit"] == "%"


def test_rows_stand_beside_the_papers(shown):
    _, benchmarks = shown

    def paper(row):
        return {each["name"]: each["value"] for each in row["paper"]}

    by_name = {row["name"]: row for row in benchmarks["mvbench"]["tasks"]}
    assert paper(by_name["Action Sequence"])["PLLaVA 7B"] == 58.0
    assert paper(benchmarks["mvbench"]["overall"])["GPT-4V"] == 43.5
    assert paper(benchmarks["msvd_qa"]["overall"]) == paper(benchmarks["msvd_qa"]["tasks"][0])
    assert paper(benchmarks["msvd_qa"]["overall"])["PLLaVA 34B"] == 79.9
    by_name = {row["name"]: row for row in benchmarks["vcgbench"]["aspects"]}
    assert paper(by_name["temporal"])["PLLaVA 13B"] == 2.47
    assert paper(by_name["mean over all grades"])["PLLaVA 7B"] == 3.12
    assert benchmarks["vcgbench"]["overall"]["paper"] == []
    assert all(row["paper"] == [] for row in benchmarks["nano"]["tasks"])


def test_comparisons_are_those_of_compare(evaluated, shown):
    comparisons = shown[1]["nano"]["comparisons"]
    assert [(each["first"], each["second"]) for each in comparisons] == [
        (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)
    ]  # fmt: skip
    expected = compare(evaluated.nano / "nano", evaluated.nano / "nano" / "no_video")["nano"].differences
    rows = comparisons[2]["rows"]
    assert [row["task"] for row in rows] == [each.task for each in expected]
    assert rows[-1]["task"] == "all" and rows[-1]["difference"] < -20
    for row, each in zip(rows, expected, strict=True):
        assert row["difference"] == 100 * (each.second - each.first)
        assert (row["p"], row["samples"]) == (each.p_value, each.samples)
        assert row["interval"] == (each.interval and [100 * end for end in each.interval])


def test_answers_say_how_the_rule_read_them(evaluated, shown):
    _, benchmarks = shown
    for row, sample in zip(lines(evaluated.nano / "nano"), benchmarks["nano"]["samples"], strict=True):
        answer = sample["answers"][0]
        assert (sample["id"], sample["questions"], answer["texts"]) == (
            row["id"],
            [row["question"]],
            [row["prediction"]],
        )
        assert answer["parsed"] == row["prediction"].lower().strip(".") and answer["verdicts"] == []
        assert answer["status"] == ("right" if row["correct"] else "wrong")
        assert row["correct"] == (answer["parsed"] == sample["reference"].lower().strip("."))
    choices = benchmarks["mvbench"]["samples"]
    assert {tuple(sample["questions"]) for sample in choices} == {("Which is there?",)}  # the options are apart
    assert all(len(sample["options"]) == 4 and sample["reference"] in sample["options"] for sample in choices)
    assert {sample["answers"][0]["parsed"] for sample in choices} >= {None, "no single option named"}
    (unreadable,) = [sample["answers"][0] for sample in choices if sample["answers"][0]["status"] == "unreadable"]
    assert unreadable["texts"] == [] and unreadable["notes"][0].startswith("Cannot decode ")


@pytest.mark.parametrize(
    ("prediction", "parsed", "right"),
    [
        ("(B) It sat.", "option (B)", True),
        ("b", "option (B)", True),
        ("The answer is (A).", "option (A)", False),
        ("(A)(B)", "no single option named", False),
        ("A man sits.", "no single option named", False),
        (" ", "empty answer", False),
    ],
)
def test_readings_of_multiple_choice(prediction, parsed, right):
    row = {"prediction": prediction, "options": ["It ran.", "It sat."], "correct": right, "legacy_correct": True}
    answer = describe_answer(row, "multiple_choice")
    assert (answer["parsed"], answer["status"]) == (parsed, "right" if right else "wrong")


def test_readings_of_a_custom_rule_are_unknown():
    row = {"prediction": "It ran.", "score": 2.5}
    assert describe_answer(row, "sports.py:score")["parsed"] is None
    assert describe_answer(row, "sports.py:score")["status"] == "scored"


def test_verdicts_are_the_judges(evaluated, shown):
    """Grades, reasons, and why there is no grade; two answers and their questions."""
    _, benchmarks = shown
    kinds = Counter()
    for name in ("vcgbench", "msvd_qa"):
        for row, sample in zip(lines(evaluated.published / name), benchmarks[name]["samples"], strict=True):
            answer = sample["answers"][0]
            assert answer["score"] == row.get("score")
            assert {each["aspect"] for each in answer["verdicts"]} == row["scores"].keys() | row.get(
                "judge_errors", {}
            )
            for verdict in answer["verdicts"]:
                assert verdict["score"] == row["scores"].get(verdict["aspect"])
                assert verdict["right"] == (row.get("correct") if name == "msvd_qa" else None)
                if verdict["score"] is None:
                    assert verdict["reason"].startswith("No grade: not a grade, it is not one JSON object")
                else:
                    assert verdict["reason"] == {4: REASON, 1: ""}[verdict["score"]]
                kinds[verdict["score"]] += 1
    assert kinds.keys() == {None, 1, 4}
    two = [sample for sample in benchmarks["vcgbench"]["samples"] if sample["task"] == "consistency_qa"]
    assert all(len(sample["questions"]) == len(sample["answers"][0]["texts"]) == 2 for sample in two)
    judged = benchmarks["vcgbench"]["runs"][0]
    assert judged["settings"]["judge"] == "stub"


def test_different_answers_are_sorted_by_how_different_they_are(shown, evaluated, site, tmp_path):
    of_controls = export(tmp_path, site, *controls(evaluated))["nano"]["samples"]  # both can be wrong, unlike nano
    samples = shown[1]["nano"]["samples"] + of_controls
    for sample in samples:
        right = {answer["status"] == "right" for answer in sample["answers"]}
        texts = {answer["parsed"] for answer in sample["answers"]}
        expected = 1.0 if len(right) > 1 else 0.1 if len(texts) > 1 else 0.0
        assert sample["disagreement"] == expected
    assert {sample["disagreement"] for sample in samples} == {0.0, 0.1, 1.0}
    rows = [{"prediction": "a", "correct": True, "score": score} for score in (5, 3)]
    assert disagreement(rows, [describe_answer(row, None) for row in rows]) == 0.2  # half of two fifths


# --- frames ----------------------------------------------------------------------------------------------------------


def test_strips_have_the_frames_that_the_model_saw(evaluated, shown):
    """Those that nano's processor samples, at the times that its metadata gives, and in the control's order."""
    folder, benchmarks = shown
    clips, processor = benchmarks["nano"]["clips"], AutoProcessor.from_pretrained(pllava.NANO).video_processor
    sample = benchmarks["nano"]["samples"][0]
    plain, fewer, control, none = (
        clips[number] for number in [sample["clip"], *(answer["clip"] for answer in sample["answers"][1:])]
    )
    assert sample["answers"][0]["clip"] is None
    assert none["strip"] is None and none["problem"] is None
    video = evaluated.data / "world" / "clips" / plain["name"]
    for clip, count in ((plain, 16), (fewer, 8)):
        seen = processor(str(video), num_frames=count, return_metadata=True, return_tensors="pt")
        metadata = seen["video_metadata"][0]
        strip = clip["strip"]
        assert strip["times"] == [round(int(index) / metadata.fps, 3) for index in metadata.frames_indices]
        assert (strip["count"], strip["height"], clip["seconds"]) == (count, HEIGHT, metadata.duration)
        image = Image.open(folder / strip["file"])
        assert image.size == (strip["count"] * strip["width"], strip["height"])
        pixels = processor(str(video), num_frames=count, do_normalize=False, do_rescale=False, return_tensors="np")
        for number, frame in enumerate(pixels["pixel_values_videos"][0]):
            left = number * strip["width"]
            small = image.crop((left, 0, left + strip["width"], strip["height"])).resize((48, 48))
            difference = abs(frame.transpose(1, 2, 0).astype(float) - small).mean()
            assert difference < 8, number
    assert control["strip"]["times"] == plain["strip"]["times"][::-1]


def test_parts_folders_and_other_formats_have_strips(shown):
    _, benchmarks = shown
    clips = benchmarks["mvbench"]["clips"]
    parts = [clip for clip in clips if clip["start"] is not None]
    assert parts and all((clip["start"], clip["end"], clip["seconds"]) == (0.5, 3.2, 2.7) for clip in parts)
    # In folders of images, at 3 per second, the first image has number 1 and is shown first
    assert all(0.5 - 1 / 3 <= time <= 3.3 for clip in parts for time in clip["strip"]["times"])
    assert {clip["name"].rpartition(".")[2] for clip in clips} > {"webm"}  # others are folders
    (missing,) = [clip for clip in clips if clip["strip"] is None]
    assert missing["problem"] == "The clip cannot be read: No such file or directory."
    assert {clip["name"].rpartition(".")[2] for clip in benchmarks["msvd_qa"]["clips"]} == {"avi"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sampling": "random"}, "frames were sampled at random: those shown are others"),
        ({"sampling": None, "pooling": None}, "a server answered: it may have sampled other frames"),
        ({"num_frames": None}, "run.json does not say how frames were sampled: those shown are 16 uniform ones"),
    ],
)
def test_frames_that_may_be_others_are_said_to_be(copied, site, tmp_path, changes, problem):
    file = copied.nano / "nano" / "run.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    shown = export(tmp_path / "gallery", site, copied.nano)["nano"]
    assert shown["runs"][0]["problems"][-1].startswith(problem)
    assert all(clip["strip"]["count"] == 16 for clip in shown["clips"])


def test_older_results_say_that_the_sampling_is_assumed(copied, site, tmp_path):
    file = copied.nano / "nano" / "run.json"
    settings = json.loads(file.read_text())
    assert settings.pop("sampling") == "uniform"
    file.write_text(json.dumps(settings))
    (run_of,) = export(tmp_path / "gallery", site, copied.nano)["nano"]["runs"]
    assert "run.json does not say how frames were sampled: those shown are 16 uniform ones" in run_of["problems"]
    # They go on as well: the key is not taken for another setting
    world = ["--data", copied.data / "world", "--out", copied.nano]
    assert "100.0% (" in run("eval", "nano", *world)
