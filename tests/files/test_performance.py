"""The table of benchmarks: each job measures its contenders, and docs/performance.md is what was measured."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pllava

ROOT = Path(pllava.__file__).parent
sys.path.append(str(ROOT / "benchmarks"))
import measuring  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
from jobs import captioning, data_loading, evaluation  # noqa: E402


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture
def quick(monkeypatch):
    """In this process, with a small product and copy, few clips, and no repetition."""
    monkeypatch.setattr(measuring, "in_new_process", lambda function, *args: function(*args))
    monkeypatch.setattr(measuring, "MATRIX", {"cpu": 256})
    monkeypatch.setattr(measuring, "COPIED", {"cpu": 2**20})
    monkeypatch.setattr(measuring, "LONG_ENOUGH", 0.0)
    for job, clips in ((captioning, 1), (evaluation, 1), (data_loading, 16)):
        monkeypatch.setattr(job, "CLIPS", {"tiny": clips})
    yield
    torch.set_default_dtype(torch.float32)


# Captioning starts four programs
@pytest.mark.parametrize(
    "name", [pytest.param(job, marks=pytest.mark.slow if job == "captioning" else ()) for job in report.JOBS]
)
def test_each_job_gives_ratios_shares_of_the_limit_and_spreads(name, quick, cache):
    job = report.JOBS[name]
    job = replace(job, cases=lambda setting: dict([next(iter(report.JOBS[name].cases(setting).items()))]))
    found = measuring.measure_job(job, measuring.Setting("tiny", "cpu", "float32", cache), rounds=2)
    rows = list(report.rows(name, found))
    peers = [row for row in rows if not row.contender.startswith(("ours", "floor"))]
    assert peers and [row.contender for row in rows].count("ours") == 1
    assert all(0 < row.fastest <= row.seconds <= row.slowest and row.ratio > 0 and row.peak > 0 for row in rows)
    assert all(row.share > 0 for row in rows), "each row is compared with the limit"
    assert all(rounds[0].keys() == rounds[1].keys() for case in found["cases"].values() for rounds in case.values())
    assert all(row.agrees is not False or row.contender.startswith("torchcodec") for row in rows)
    assert {row.contender for row in rows}.isdisjoint(found["left_out"])
    assert report.format_table(name, found).count("\n") == len(rows) + 1


def test_a_peer_that_fails_is_left_out_with_its_reason_and_ours_is_not(quick, cache):
    def works(setting):
        return measuring.Step(lambda: None)

    def fails(setting):
        raise RuntimeError("no such kernel")

    def missing(setting):
        raise measuring.LeftOutError("cannot be imported")

    setting = measuring.Setting("tiny", "cpu", "float32", cache)
    contenders = {"ours": works, "a peer": fails, "another": missing}
    found = measuring.measure_job(measuring.Job("", "copy", lambda _: {"case": contenders}), setting, 2)
    assert found["left_out"] == {"a peer": "RuntimeError: no such kernel", "another": "cannot be imported"}
    assert {name: len(rounds) for name, rounds in found["cases"]["case"].items()} == {"ours": 2}
    with pytest.raises(RuntimeError, match="no such kernel"):
        measuring.measure_job(measuring.Job("", "copy", lambda _: {"case": {"ours": fails}}), setting, 1)


def test_operations_of_attention_and_its_backward_pass_are_counted_on_a_cpu(cache):
    heads, length, size = 2, 32, 16

    def attend(setting):
        query, key, value = torch.randn(3, 1, heads, length, size, requires_grad=True)

        def run():
            torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward(retain_graph=True)

        return measuring.Step(run)

    product = 2 * heads * length**2 * size
    measured = measuring.measure(attend, measuring.Setting("tiny", "cpu", "float32", cache))
    assert measured["flops"] == (2 + 5) * product  # two forward, five backward


@pytest.mark.slow
def test_the_command_runs_each_contender_in_a_process_of_its_own_and_writes_all_values(tmp_path, cache):
    file = tmp_path / "new" / "measured.json"
    command = [sys.executable, ROOT / "benchmarks" / "run.py", "--job", "preprocess", "--rounds", 1]
    result = subprocess.run(
        [*map(str, command), "--json", str(file), "--cache", str(cache)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    measured = json.loads(file.read_text(encoding="utf-8"))
    assert report.format_table("preprocess", measured["jobs"]["preprocess"]) in result.stdout
    assert measured["setting"] == {"size": "tiny", "device": "cpu", "dtype": "float32", "rounds": 1}
    assert measured["versions"]["torch"] == torch.__version__.partition("+")[0] and measured["machine"]["cores"]
    wrong = subprocess.run([sys.executable, command[1], "--job", "fly"], capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and "fly: there are decode, preprocess," in " ".join(wrong.stderr.split())


def test_jobs_that_were_measured_under_the_same_conditions_are_kept(tmp_path):
    file = tmp_path / "new" / "measured.json"
    small = {"machine": {"cores": 2}, "versions": {}, "setting": {"rounds": 3}}
    run.save({**small, "jobs": {"decode": 1}}, file)
    run.save({**small, "jobs": {"decode": 2, "prefill": 3}}, file)
    run.save({**small, "jobs": {"train_step": 4}}, file)
    assert json.loads(file.read_text())["jobs"] == {"decode": 2, "prefill": 3, "train_step": 4}
    run.save({**small, "setting": {"rounds": 5}, "jobs": {"decode": 6}}, file)
    assert json.loads(file.read_text())["jobs"] == {"decode": 6}


def test_the_page_is_what_was_measured():
    results = report.read_results()
    assert results and report.PAGE.read_text(encoding="utf-8") == report.page(results)
    assert all((ROOT / "docs" / "figures" / f"performance_{theme}.png").exists() for theme in ("light", "dark"))


def test_each_slow_row_of_the_page_is_explained():
    for measured in report.read_results().values():
        for name, found in measured["jobs"].items():
            unexplained = [
                f"{row.contender}, {row.case}" for row, reason in report.slow_rows(name, found) if not reason
            ]
            assert not unexplained, f"{name}: say why in the job's `slow`"
