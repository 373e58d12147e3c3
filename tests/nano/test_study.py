"""The study: its settings, its verdicts, and a tiny one from the first clip to the report."""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import yaml

from pllava.files import replace_file, to_lines
from pllava.nano.study.asking import answers, answers_folder
from pllava.nano.study.conduct import conduct, is_finished
from pllava.nano.study.report.measures import above_chance, measure
from pllava.nano.study.report.verdicts import AGREES, CANNOT_TELL, DISAGREES, decide, interval_of, judge
from pllava.nano.study.settings import STUDY, Claim, Setting, read_study
from pllava.nano.study.workshop import Workshop
from pllava.nano.training.recipe import read_recipe


def changed_study(tmp_path, old, new):
    file = tmp_path / "study.yaml"
    text = STUDY.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return file


def test_runs_with_the_same_values_are_trained_once():
    study = read_study()
    runs = study.runs(0)
    labels = sum(len(experiment.runs) for experiment in study.experiments.values())
    assert len(runs) < labels
    assert study.run("temporal", "8 to 8", 0) == study.run("prompts", "8 frames pooled", 0)
    settings = runs[study.run("temporal", "8 to 8", 0)]
    assert (
        Setting() in settings and Setting(template="eval_mvbench") in settings and len(set(settings)) == len(settings)
    )


def test_fresh_seeds_have_what_claims_compare_and_no_more():
    study = read_study()
    seed, fresh = study.seeds[0], study.fresh_seeds[0]
    runs, fresh_runs = study.runs(seed), {replace(run, seed=seed): each for run, each in study.runs(fresh).items()}
    assert len(fresh_runs) < len(runs) and all(set(each) <= set(runs[run]) for run, each in fresh_runs.items())
    for claim in study.claims:
        for side in claim.more + claim.less:
            assert side.setting in fresh_runs[study.run(claim.experiment, side.run, seed)]


def test_all_claims_are_about_runs_and_settings_of_their_experiment():
    claims = yaml.safe_load(STUDY.read_text())["claims"]
    assert len(read_study().claims) == len(claims)
    quick = read_study(quick=True)
    assert 10 < len(quick.claims) < len(claims) and len(quick.runs(0)) < len(read_study().runs(0)) / 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nstages:", "\nstagez:", "stagez"),
        ("    source: figure 7, left", "    sauce: figure 7, left", "sauce"),
        ("more: [{run: 3x3}]", "more: [{run: 5x5}]", "no experiment asks what is compared for 'Half of the rows"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=f"study.yaml is not a study like .*{message}"):
        read_study(changed_study(tmp_path, old, new))


@pytest.mark.parametrize(
    ("expect", "interval", "verdict"),
    [
        ("more", (0.1, 9), AGREES),
        ("more", (-9, -0.1), DISAGREES),
        ("more", (-1, 9), CANNOT_TELL),
        ("equal", (-2, 2.5), AGREES),
        ("equal", (3.5, 9), DISAGREES),
        ("equal", (-9, -3.5), DISAGREES),
        ("equal", (-2, 4), CANNOT_TELL),
        ("equal", (-math.inf, math.inf), CANNOT_TELL),
    ],
)
def test_verdicts_follow_from_the_interval(expect, interval, verdict):
    claim = Claim("text", "spatial", [], [], expect=expect, margin=3)
    assert decide(claim, interval)[0] == verdict


def test_the_interval_is_students():
    low, high = interval_of([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert interval_of([5.0]) == (-math.inf, math.inf)


@pytest.fixture
def answered(tmp_path):
    """A workshop in which the runs of `spatial` have answers, without any model."""
    study = read_study()
    workshop = Workshop(tmp_path, study, read_recipe())
    right = {"6x6": 7, "3x3": 7, "1x1": 2}
    for seed in (0, 1, 2, 3, 4):
        for label, count in right.items():
            run = study.run("spatial", label, seed)
            rows = [
                {
                    "id": f"{task}{n}",
                    "task": task,
                    "video": f"{n}.mp4",
                    "prediction": "a b c",
                    "correct": n < count + (task == "count" and seed),
                }
                for task in ("direction", "count", "caption")
                for n in range(10)
            ]
            folder = answers_folder(workshop, run, Setting())
            folder.mkdir(parents=True)
            replace_file(folder / "predictions.jsonl", to_lines(rows))
    return workshop


def test_measures_are_means_over_types(answered):
    run = answered.study.run("spatial", "3x3", 1)
    assert measure(answered, run, Setting(), "direction") == 70
    assert measure(answered, run, Setting(), "all") == 75  # 70 and 80; captions are none of the types
    assert measure(answered, run, Setting(), "words") == 3
    with pytest.raises(ValueError, match="no questions for the measure 'bounces'"):
        measure(answered, run, Setting(), "bounces")


def test_fresh_seeds_confirm_or_refute_a_verdict(answered):
    equal, more = answered.study.claims[:2]
    assert (equal.expect, more.expect) == ("equal", "more")
    verdict = judge(answered, equal, [0, 1, 2], [3, 4])
    assert (verdict.verdict, verdict.mean, verdict.holds) == (AGREES, 0, True)
    verdict = judge(answered, more, [0, 1, 2], [3, 4])
    assert (verdict.verdict, verdict.mean, verdict.holds) == (AGREES, 50, True)
    opposite = replace(more, more=more.less, less=more.more)
    assert judge(answered, opposite, [0, 1, 2], [3]).verdict == DISAGREES
    run = answered.study.run("spatial", "1x1", 4)
    rows = [{**row, "correct": True} for row in answers(answered, run, Setting())]
    replace_file(answers_folder(answered, run, Setting()) / "predictions.jsonl", to_lines(rows))
    assert judge(answered, more, [0, 1, 2], [3, 4]).holds is False


def test_models_that_guess_are_not_equal_to_each_other(answered):
    """With two directions and three counts, guessing gives 50 and 33 per cent."""
    equal = answered.study.claims[0]
    run = answered.study.run("spatial", "3x3", 1)
    assert above_chance(answered, run, Setting(), "direction") == 20
    assert above_chance(answered, run, Setting(), "caption") == 70
    assert judge(answered, equal, [0, 1, 2]).verdict == AGREES
    for seed in (0, 1, 2):
        for label in ("6x6", "3x3"):
            run = answered.study.run("spatial", label, seed)
            rows = [{**row, "correct": int(row["id"][-1]) < 4} for row in answers(answered, run, Setting())]
            replace_file(answers_folder(answered, run, Setting()) / "predictions.jsonl", to_lines(rows))
    verdict = judge(answered, equal, [0, 1, 2])
    assert (verdict.verdict, verdict.mean) == (CANNOT_TELL, 0)
    assert "not clearly above chance" in verdict.why


def test_a_finished_run_is_not_loaded_again(answered):
    run = answered.study.run("spatial", "3x3", 0)
    assert not is_finished(answered, run, [Setting()])
    (answers_folder(answered, run, Setting()) / "metrics.json").write_text("{}")
    assert is_finished(answered, run, [Setting()])
    assert not is_finished(answered, run, [Setting(), Setting(alpha=0.5)])


@pytest.mark.slow
def test_a_killed_study_continues_to_the_same_report(tmp_path):
    """A tiny study, complete; then with one run's results lost: only that run is trained again."""
    quick = read_study(quick=True)
    base = {**quick.base, "steps": 2, "clips": 16}
    held_out = {"clips": 4, "stills": 4, "seed": 100}
    stages = {name: {**values, "steps": 2} for name, values in quick.stages.items() if "steps" in values}
    stages = {**quick.stages, **stages}
    study = replace(quick, base=base, stages=stages, held_out=held_out, fresh_seeds=[2])
    conduct(study, tmp_path / "work", tmp_path / "report", processes=2)
    report = {file.name: file.read_bytes() for file in (tmp_path / "report").rglob("*") if file.is_file()}
    assert {"report.md", "verdicts.json", "spatial.png", "spatial_dark.png"} <= report.keys()
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', report["report.md"].decode())
    assert len(pictures) == 2 * len(study.experiments)
    assert all((tmp_path / "report" / picture).is_file() for picture in pictures)
    verdicts = json.loads(report["verdicts.json"])
    assert len(verdicts["verdicts"]) == len(study.claims) and verdicts["runs"] == 3 * len(study.runs(0))

    runs = sorted((tmp_path / "work" / "runs").glob("*/run.json"))
    times = {file: file.stat().st_mtime_ns for file in runs}
    lost = runs[0].parent
    shutil.rmtree(lost)
    conduct(study, tmp_path / "work", tmp_path / "report", processes=2)
    changed = [file for file in runs if file.stat().st_mtime_ns != times[file]]
    assert changed == [runs[0]]
    again = json.loads((tmp_path / "report" / "verdicts.json").read_bytes())
    assert again["verdicts"] == verdicts["verdicts"]
