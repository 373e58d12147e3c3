"""The paper's cells again, with nano and stand-in data: locks, what differs from them, verdicts, and estimates."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from benchmark_folders import benchmark, lines, metrics, write_mvbench, write_vcgbench, write_videoqa
from chat_server import chat_server, grade
from hub_client import error_of, run
from layouts import write_official
from local_hub import local_hub
from transformers import AutoProcessor
from typer.testing import CliRunner

import pllava
from pllava.eval import Judge, load_prompts, read_samples
from pllava.eval.report.paper import PAPER
from pllava.eval.reproduce import lock as locks_module
from pllava.eval.reproduce.cost import GPUS, Gpu, format_plan, gpu_hours, weight_bytes
from pllava.eval.reproduce.data import Data, read_locked_samples
from pllava.eval.reproduce.differences import (
    AS_LOCKED,
    AS_RECORDED,
    CHANGED,
    DIFFERS,
    UNCHECKED,
    UNSET,
    check_lock,
)
from pllava.eval.reproduce.figures import CANNOT_TELL, OUTSIDE, WITHIN, compare_figures, paper_columns
from pllava.eval.reproduce.frames import digest_frames, find_frames
from pllava.eval.reproduce.lock import LOCKS, find_lock, load_locks
from pllava_cli import app

CELL = "table2/7b/mvbench"
SETS = ["msvd_qa", "msrvtt_qa", "activitynet_qa", "tgif_qa"]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mvbench(folder)
    write_vcgbench(folder)
    write_videoqa(folder, "msvd_qa")
    return folder


@pytest.fixture(scope="module")
def video_processor():
    return AutoProcessor.from_pretrained(pllava.NANO).video_processor


@pytest.fixture
def change_locks(tmp_path, monkeypatch):
    """A function that changes the locks of all cells."""

    def change(**entries):
        content = yaml.safe_load(LOCKS.read_text())
        for cell in content["cells"].values():
            cell.update(entries)
        file = tmp_path / "locks.yaml"
        file.write_text(yaml.safe_dump({"cells": content["cells"]}))
        monkeypatch.setattr(locks_module, "LOCKS", file)
        return file

    return change


def invoke(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def reproduce(cell, data, out, *arguments):
    """Reproduce a cell with nano; return the text that is printed, and reproduction.json."""
    finished = invoke(cell, "--model", "nano", "--data", data, "--out", out, "--workers", 0, *arguments)
    assert finished.exit_code == 0, finished.output
    return finished.stdout, json.loads((out / cell / "reproduction.json").read_text())


def statuses(reproduction):
    return {each["name"]: each["status"] for each in reproduction["entries"]}


# --- locks -----------------------------------------------------------------------------------------------------------


def test_every_cell_has_a_benchmark_figures_and_current_prompts():
    prompts, locks = load_prompts(), load_locks()
    tables = {"table2": ["mvbench"], "table3": [*SETS, "vcgbench"]}
    sizes = ("7b", "13b", "34b")
    assert set(locks) == {f"{table}/{size}/{name}" for table in tables for size in sizes for name in tables[table]}
    for cell, lock in locks.items():
        declared = benchmark(lock.benchmark)
        assert cell.endswith(f"/{lock.size}/{lock.benchmark}") and lock.size.upper() in lock.paper_row
        assert (lock.prompt_hash, lock.max_new_tokens) == (declared.prompt_hash(), declared.max_new_tokens)
        assert lock.template_family in declared.chat_template
        columns = paper_columns(declared)
        figures = [column[lock.paper_row] for names in columns.values() for column in names.values()]
        assert len(figures) == {"mvbench": 21, "vcgbench": 6}.get(lock.benchmark, 2)
        assert (lock.judge is None) == (declared.score != "judge") and lock.judge in (None, PAPER["judge"])
        if lock.judge:
            judge = Judge(type("Chat", (), {"model": lock.judge}), prompts["judge"], Path("none"))
            assert lock.judge_prompt_hash == judge.describe(declared)["prompts"]
            assert {"judge", "judge_temperature", "judge_prompt_hash"} <= lock.entries().keys()
        else:
            assert not any(name.startswith("judge") for name in lock.entries())


def test_unknown_cell_names_the_nearest():
    finished = invoke("table2/7b/mvbnch")
    assert finished.exit_code == 1
    assert "'table2/7b/mvbnch' is no cell" in finished.stderr and "nearest are table2/7b/mvbench," in finished.stderr


@pytest.mark.parametrize(("change", "name"), [({"alhpa": 4}, "alhpa"), ({"model": None}, "model")])
def test_invalid_lock_is_refused(tmp_path, change, name):
    entries = yaml.safe_load(LOCKS.read_text())["cells"][CELL]
    entries = {key: value for key, value in {**entries, **change}.items() if key not in change or value}
    (tmp_path / "locks.yaml").write_text(yaml.safe_dump({"cells": {CELL: entries}}))
    with pytest.raises(ValueError, match=rf"the lock of {CELL} has missing or unknown entries: \['{name}'\]"):
        load_locks(tmp_path / "locks.yaml")


def test_samples_are_drawn_as_the_released_code_draws_them(data):
    lock = replace(find_lock("table3/7b/msvd_qa"), samples=2)
    everything = read_samples(benchmark("msvd_qa"), str(data))
    order = list(range(len(everything)))
    np.random.RandomState(42).shuffle(order)
    drawn = read_locked_samples(lock, benchmark("msvd_qa"), Data.given(str(data)))
    assert {sample.id for sample in drawn} == {everything[index].id for index in order[:2]}
    assert [sample.id for sample in drawn] == [sample.id for sample in everything if sample in drawn]
    assert read_locked_samples(lock, benchmark("msvd_qa"), Data.given(str(data)), limit=3) == everything[:3]


def test_frame_digest_is_of_the_frames_that_the_model_sees(data, video_processor):
    samples = read_samples(benchmark("mvbench"), str(data))
    for sample in samples:
        seen = video_processor(sample.source, return_tensors="pt", return_metadata=True)["video_metadata"][0]
        assert find_frames(video_processor, sample.clip) == list(seen.frames_indices)
    digests = {digest_frames(samples, video_processor, workers) for workers in (0, 2)}
    assert len(digests) == 1
    others = [replace(samples[0], end=2.0), replace(samples[0], id="other"), replace(samples[0], video="missing.mp4")]
    digests |= {digest_frames([other, *samples[1:]], video_processor, 0) for other in others}
    assert len(digests) == 4
    assert find_frames(video_processor, others[-1].clip) is None


def test_entries_are_checked_unset_recorded_or_different():
    lock = replace(find_lock(CELL), frame_digest="a", sample_digest=None)
    found = dict.fromkeys(lock.entries(), None) | {"alpha": 4.0, "frame_digest": "b", "sample_digest": "c"}

    def check(recorded):
        return {each.name: (each.locked, each.status) for each in check_lock(lock, found, recorded)}

    first = check({})
    assert (first["alpha"], first["frame_digest"]) == ((4, AS_LOCKED), ("a", DIFFERS))
    assert (first["sample_digest"], first["model"]) == ((None, UNSET), (lock.model, UNCHECKED))
    assert check({"sample_digest": "c"})["sample_digest"] == ("c", AS_RECORDED)
    assert check({"sample_digest": "d"})["sample_digest"] == ("d", CHANGED)


# --- verdicts --------------------------------------------------------------------------------------------------------


def scripted_metrics(accuracy, interval, **changes):
    """Metrics of MVBench in which each task and all samples have the same accuracy."""
    values = {"accuracy": accuracy, "accuracy_ci": interval, "coverage": 1.0, "evaluated": 4000, "expected": 4000}
    tasks = dict.fromkeys(benchmark("mvbench").tasks, values)
    return {**values, "per_task": tasks, "run": {"limit": None}, **changes}


def figures(found, cell=CELL):
    lock = find_lock(cell)
    return {each.name: each for each in compare_figures(lock, benchmark(lock.benchmark), found)}


@pytest.mark.parametrize(
    ("interval", "verdict", "reason"),
    [
        ((0.45, 0.47), WITHIN, None),
        ((0.4665, 0.48), WITHIN, None),  # the paper's 46.6 may be 46.65
        ((0.4666, 0.48), OUTSIDE, "0.01 below it"),
        ((0.44, 0.4655), WITHIN, None),
        ((0.44, 0.45), OUTSIDE, "1.55 above it"),
        (None, CANNOT_TELL, "an interval needs two clips"),
    ],
)
def test_verdict_on_the_average(interval, verdict, reason):
    figure = figures(scripted_metrics(0.46, interval))["all"]
    assert (figure.paper, figure.digits, figure.verdict, figure.reason) == (46.6, 1, verdict, reason)
    assert figure.ours == 46.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": {"limit": 5}}, "--limit asks a part of the samples only"),
        ({"expected": 40}, "the data have 40 samples instead of 4,000"),
        ({"coverage": 0.9, "evaluated": 3600}, "3,600 of 4,000 samples were evaluated"),
    ],
)
def test_verdict_needs_all_samples(changes, reason):
    figure = figures(scripted_metrics(0.46, (0.4, 0.5), **changes))["all"]
    assert figure.verdict == CANNOT_TELL and reason in figure.reason


def test_verdict_on_a_task_needs_that_task_only():
    found = scripted_metrics(0.46, (0.4, 0.5), coverage=0.99, evaluated=3960)
    found["per_task"] = {name: dict(task) for name, task in found["per_task"].items()}
    found["per_task"]["Action Count"] |= {"coverage": 0.8, "evaluated": 160, "expected": 200}
    compared = figures(found)
    assert compared["Action Count"].reason == "160 of 200 samples were evaluated"
    assert (compared["Moving Count"].verdict, compared["Action Sequence"].verdict) == (WITHIN, OUTSIDE)
    assert compared["all"].verdict == CANNOT_TELL


def test_accuracy_is_that_of_the_originals_matcher_where_there_is_one():
    found = scripted_metrics(0.3, (0.2, 0.4)) | {"accuracy_legacy": 0.46, "accuracy_legacy_ci": (0.45, 0.47)}
    assert (figures(found)["all"].measure, figures(found)["all"].verdict) == ("accuracy_legacy", WITHIN)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_cell_with_other_model_and_data_names_the_differences(data, tmp_path):
    text, found = reproduce(CELL, data, tmp_path)
    folder = tmp_path / CELL
    assert text.strip().startswith((folder / "reproduction.md").read_text().strip())
    assert len(found["figures"]) == 21 and {each["verdict"] for each in found["figures"]} == {CANNOT_TELL}
    assert "the data have 40 samples instead of 4,000" in text
    for line in (
        "- model: ermu2001/pllava-7b in the lock, nano here",
        f"- data: ermu2001/PLLaVATesting in the lock, the folder {data.name} here",
        "- pooling: average-16x12x12 in the lock, average-16x3x3 here",
        "- wording of the questions: ours, not the paper's",
        "- scoring: strict, since the original's matcher finds an option in no answer",
    ):
        assert f"\n{line}\n" in text, line
    assert str(data.parent) not in (folder / "reproduction.md").read_text()
    recorded = json.loads((folder / "lock.json").read_text())
    assert recorded["lock"]["frame_digest"] is None and recorded["found"]["model_revision"] is None
    samples = read_samples(benchmark("mvbench"), str(data))
    video_processor = AutoProcessor.from_pretrained(pllava.NANO).video_processor
    assert recorded["found"]["frame_digest"] == digest_frames(samples, video_processor, 0)
    assert recorded["found"]["sample_digest"] == metrics(folder)["run"]["samples"]
    status = statuses(found)
    assert (status["num_frames"], status["prompt_hash"], status["frame_digest"]) == (AS_LOCKED, AS_LOCKED, UNSET)
    assert not list(folder.glob("*.partial"))


def test_entries_that_differ_are_reported_and_verdicts_follow_the_locked_samples(data, tmp_path, change_locks):
    file = change_locks(samples=40, frame_digest="000000000000", num_frames=8, dtype="float32")
    before = file.read_bytes()
    text, found = reproduce(CELL, data, tmp_path / "out")
    assert "- frame_digest: 000000000000 in the lock, " in text and "- num_frames: 8 in the lock, 16 here" in text
    status = statuses(found)
    assert (status["frame_digest"], status["dtype"], status["samples"]) == (DIFFERS, AS_LOCKED, AS_LOCKED)
    overall = found["figures"][-1]
    assert (overall["name"], overall["paper"], overall["verdict"]) == ("all", 46.6, OUTSIDE)
    assert overall["reason"].endswith("above it")
    assert file.read_bytes() == before  # a run reads its lock


def test_stopped_run_continues_and_is_checked_against_the_first(data, tmp_path):
    reproduce(CELL, data, tmp_path)
    folder = tmp_path / CELL
    rows, content = lines(folder), (folder / "predictions.jsonl").read_bytes()
    recorded = json.loads((folder / "lock.json").read_text())
    with (folder / "predictions.jsonl").open("r+b") as file:
        file.truncate(len(content) // 2)
    for name in ("metrics.json", "reproduction.md", "reproduction.json"):
        (folder / name).unlink()
    missing = len(rows) - content[: len(content) // 2].count(b"\n")
    _, found = reproduce(CELL, data, tmp_path)
    assert metrics(folder)["time"]["answered"] == missing  # no answer is given twice
    assert lines(folder) == rows
    assert statuses(found)["frame_digest"] == statuses(found)["sample_digest"] == AS_RECORDED
    recorded["found"]["frame_digest"] = "000000000000"
    (folder / "lock.json").write_text(json.dumps(recorded))
    text, _ = reproduce(CELL, data, tmp_path)
    assert metrics(folder)["time"]["answered"] == missing
    assert "- frame_digest: 000000000000 in the first run, " in text
    assert json.loads((folder / "lock.json").read_text()) == recorded  # of the first run


def test_limit_tells_nothing_about_the_figures(data, tmp_path):
    text, found = reproduce(CELL, data, tmp_path, "--limit", 1)
    assert {each["verdict"] for each in found["figures"]} == {CANNOT_TELL}
    assert "--limit asks a part of the samples only" in text and "- limit: 1 of each task's samples" in text
    assert statuses(found)["frame_digest"] == UNCHECKED


def test_judged_cells_need_a_judge(data, tmp_path, change_locks):
    change_locks(samples=9)
    cell = "table3/7b/vcgbench"
    text, found = reproduce(cell, data, tmp_path / "out")
    assert [each["name"] for each in found["figures"]] == [*PAPER["vcg"]["columns"][:-1], "all"]
    assert {each["reason"] for each in found["figures"]} == {"the answers were not judged (--judge)"}
    assert "- judge: there was none" in text and statuses(found)["judge"] == UNCHECKED
    with chat_server(grade) as (url, _):
        text, found = reproduce(cell, data, tmp_path / "out", "--judge", "stub", "--judge-endpoint", url)
    assert metrics(tmp_path / "out" / cell)["judge"]["asked"] == 15
    overall = found["figures"][-1]
    assert (overall["ours"], overall["paper"], overall["digits"]) == (4.0, 3.12, 2)
    assert overall["interval"] == [4.0, 4.0] and overall["verdict"] == OUTSIDE
    status = statuses(found)
    assert (status["judge"], status["judge_temperature"], status["judge_prompt_hash"]) == (
        DIFFERS,
        AS_LOCKED,
        AS_LOCKED,
    )
    assert "- judge: gpt-3.5-turbo-0125 in the lock, stub here" in text
    assert "- wording of the judge's instructions: ours, not the paper's" in text


def test_videoqa_has_an_accuracy_and_a_score(data, tmp_path, change_locks):
    change_locks(samples=4)
    with chat_server(grade) as (url, _):
        options = ["--judge", "gpt-3.5-turbo-0125", "--judge-endpoint", url, "--judge-temperature", 0.5]
        text, found = reproduce("table3/7b/msvd_qa", data, tmp_path / "out", *options)
    assert [(each["name"], each["measure"]) for each in found["figures"]] == [("all", "accuracy"), ("all", "score")]
    score = found["figures"][1]
    assert (score["paper"], score["ours"], score["verdict"], score["reason"]) == (4.1, 4.0, OUTSIDE, "0.05 above it")
    assert statuses(found)["judge"] == AS_LOCKED
    assert "- judge_temperature: 1 in the lock, 0.5 here" in text and "- judge:" not in text


def test_options_without_effect_are_refused():
    for arguments, message in (
        (["--limit", 1], "--list, all cells are shown: leave --limit out"),
        ([CELL, "--list"], "all cells are shown: leave CELL out"),
        ([CELL, "--dry-run", "--model", "nano"], "--dry-run runs nothing: leave --model out"),
        ([CELL, "--revision", "main"], "The lock has the revision of its model: leave --revision out"),
        ([CELL, "--judge-rpm", 3], "There is no --judge: leave --judge-rpm out"),
        ([CELL, "--judge", "stub"], f"{CELL} needs no judge: leave --judge out"),
        ([CELL, "--concurrency", 3], "There is no --judge-endpoint: leave --concurrency out"),
    ):
        finished = invoke(*arguments)
        assert finished.exit_code == 2 and message in finished.stderr, finished.output


# --- from the Hub ----------------------------------------------------------------------------------------------------

PATCHED = """
import sys
from pathlib import Path

from pllava.eval.reproduce import lock
from pllava_cli import app

lock.LOCKS = Path(sys.argv[1])
app(sys.argv[2:])
"""


def test_model_and_data_come_from_the_hub(data, tmp_path, change_locks):
    """A tiny checkpoint in the published layout is converted, and the archive of the dataset unpacked."""
    hub_folder = tmp_path / "hub"
    write_official(hub_folder / "ermu2001" / "pllava-7b", shards=2)
    archive = hub_folder / "datasets" / "ermu2001" / "PLLaVATesting" / "DATAS" / "MVBench"
    shutil.make_archive(str(archive), "zip", data, "MVBench")
    locks = change_locks(samples=40, num_frames=4, pooling="average-4x2x2")
    with local_hub(hub_folder) as hub:
        command = ["-c", PATCHED, locks, "reproduce", CELL, "--workers", 0]
        text = run(hub, tmp_path, *command).stdout
        again = run(hub, tmp_path, *command)
    found = json.loads((tmp_path / "reproduced" / CELL / "reproduction.json").read_text())
    status = statuses(found)
    same = ["model", "alpha", "pooling", "num_frames", "data", "template_family", "samples"]
    assert {status[name] for name in same} == {AS_LOCKED}
    recorded = ["model_revision", "data_revision", "sample_digest", "frame_digest"]
    assert f"Recorded in lock.json, since no value is locked yet: {', '.join(recorded)}." in text
    assert {status[name] for name in recorded} == {AS_RECORDED}  # in the second run
    assert "Converting" not in again.stderr
    commits = [each["found"] for each in found["entries"] if each["name"].endswith("_revision")]
    assert [len(commit) for commit in commits] == [40, 40]


def test_missing_downloads_are_named(data, tmp_path):
    with local_hub(tmp_path / "hub") as hub:
        error = error_of(hub, tmp_path, "-m", "pllava.eval", "reproduce", CELL)
        assert "DATAS/MVBench.zip of the dataset ermu2001/PLLaVATesting" in error and "--data" in error
        error = error_of(hub, tmp_path, "-m", "pllava.eval", "reproduce", CELL, "--data", data)
    assert "the model ermu2001/pllava-7b, 14.1 GB" in error and "--model" in error
    assert not (tmp_path / "reproduced" / CELL).exists()


# --- estimates -------------------------------------------------------------------------------------------------------


def test_hours_grow_with_the_model_and_fall_with_a_faster_gpu():
    h100 = GPUS["H100 SXM"]
    hours = [gpu_hours(find_lock(f"table2/{size}/mvbench"), h100) for size in ("7b", "13b", "34b")]
    assert 0 < hours[0] < hours[1] < hours[2]
    assert gpu_hours(find_lock(CELL), Gpu(h100.operations / 2, h100.bytes / 2)) == pytest.approx(2 * hours[0])
    assert weight_bytes(find_lock(CELL)) == pytest.approx(14.1e9, rel=0.01)


def test_costs_are_counted_and_shares_are_measured(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import reproduction_costs

    written = json.loads(reproduction_costs.FILE.read_text())
    measured = json.loads(reproduction_costs.RESULT.read_text())
    assert written["shares"] == reproduction_costs.measured_shares(measured)
    cost = reproduction_costs.count_work("7b", measured["facts"]["prompt_tokens"])
    assert written["models"]["7b"] == cost
    assert cost["parameters"] == measured["facts"]["parameters"]
    assert cost["weights"] == measured["facts"]["weights_per_token"]
    assert cost["encode"] == measured["flops"]["encode the video"]
    assert cost["prefill"] == pytest.approx(measured["flops"]["prefill"], rel=1e-3)
    sys.modules.pop("reproduction_costs")


def test_list_and_plan_say_what_cells_take():
    listed = invoke("--list").stdout
    assert listed == invoke().stdout
    assert all(f"| {cell} | " in listed for cell in load_locks())
    assert "| table2/34b/mvbench | accuracy (%) 58.1 | 4,000 | 69.5 |" in listed
    assert "nothing was measured on a GPU" in listed and "benchmarks/results/real_size.json" in listed
    plan = invoke("table3/13b/tgif_qa", "--dry-run").stdout
    assert plan.strip() == format_plan(find_lock("table3/13b/tgif_qa"))
    assert "ermu2001/pllava-13b at its newest commit" in plan and "DATAS/VideoQA.zip" in plan
    assert "2,000, drawn from all with seed 42" in plan and "gpt-3.5-turbo-0125 at temperature 1" in plan
    assert f"hours on one H100 SXM: {gpu_hours(find_lock('table3/13b/tgif_qa'), GPUS['H100 SXM']):.2g}" in plan
