"""Results folders used again: runs that are resumed or rescored, and failures that are retried."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from benchmark_folders import benchmark, lines, metrics, write_videoqa
from chat_server import Reply, chat_server
from transformers import AutoProcessor
from typer.testing import CliRunner

import pllava
from pllava.eval import PLAIN, Checkpoint, LocalModel, Variant, evaluate, load_benchmark, parse_sweep
from pllava.files import to_lines
from pllava.nano.world.rendering import render
from pllava_cli import app

VARIANTS = [PLAIN, Variant("no_video", control="no_video")]


@pytest.fixture(scope="module")
def nano():
    return LocalModel(pllava.load_model(pllava.NANO), AutoProcessor.from_pretrained(pllava.NANO), num_workers=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    render(folder, clips=4, seed=3)
    return folder


@pytest.fixture(scope="module")
def unbroken(nano, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    evaluate(benchmark("nano"), nano, str(world), out, VARIANTS)
    return out / "nano"


def content(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.json*")}


def invoke(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def fail_to_load(*_, **__):
    raise AssertionError("no answer is missing: the model must not be loaded")


def test_model_is_loaded_only_if_answers_are_missing(nano, world, unbroken, tmp_path, monkeypatch):
    """The settings in run.json are read from the configs, and are those of the loaded model."""
    for variant in VARIANTS:
        unloaded = LocalModel(fail_to_load, nano.processor, checkpoint=Checkpoint.read(pllava.NANO))
        assert unloaded.describe(variant) == nano.describe(variant)
    shutil.copytree(unbroken, tmp_path / "nano")
    before = content(tmp_path)
    monkeypatch.setattr(pllava, "load_model", fail_to_load)
    finished = invoke("nano", "--workers", 0, "--data", world, "--out", tmp_path)
    assert finished.exit_code == 0, finished.output
    assert content(tmp_path) == before
    with (tmp_path / "nano" / "predictions.jsonl").open("r+b") as file:
        file.truncate(2000)
    finished = invoke("nano", "--workers", 0, "--data", world, "--out", tmp_path)
    assert isinstance(finished.exception, AssertionError)


def test_loaded_model_that_differs_from_its_configs_is_refused(nano, world, tmp_path):
    other = Checkpoint.read(pllava.NANO, dtype="bfloat16")
    model = LocalModel(lambda: nano.loaded, nano.processor, num_workers=0, checkpoint=other)
    with pytest.raises(ValueError, match="dtype='float32'.*describe.*dtype='bfloat16'"):
        evaluate(benchmark("nano"), model, str(world), tmp_path)


def test_failed_samples_are_retried_only_on_request(nano, world, unbroken, tmp_path, monkeypatch):
    """The answers are then those of a run without failures."""
    shutil.copytree(world, tmp_path / "world")
    clip = next((tmp_path / "world" / "clips").iterdir())
    whole = clip.read_bytes()
    clip.write_bytes(b"this is no video")
    arguments = (benchmark("nano"), nano, str(tmp_path / "world"), tmp_path / "out", VARIANTS)
    found = evaluate(*arguments)[""]
    failed = found["unreadable"]
    assert 0 < failed == found["expected"] - found["evaluated"]
    clip.write_bytes(whole)
    before = lines(tmp_path / "out" / "nano")
    with monkeypatch.context() as context:
        context.setattr(nano.generator, "answer", fail_to_load)
        evaluate(*arguments)
    assert lines(tmp_path / "out" / "nano") == before
    found = evaluate(*arguments, retry_failed=True)[""]
    assert (found["coverage"], found["time"]["answered"]) == (1.0, len(VARIANTS) * failed)

    def answers(folder):
        return [{**row, "video": Path(row["video"]).name} for row in lines(folder)]

    for variant in VARIANTS:
        assert answers(tmp_path / "out" / "nano" / variant.name) == answers(unbroken / variant.name)


def test_nothing_is_scored_if_nearly_all_clips_are_unreadable(nano, world, tmp_path):
    shutil.copytree(world, tmp_path / "world")
    for clip in (tmp_path / "world" / "clips").iterdir():
        clip.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    finished = invoke("nano", "--workers", 0, "--data", tmp_path / "world", "--out", tmp_path / "out")
    rows = lines(tmp_path / "out" / "nano")
    assert finished.exit_code == 1
    assert f"{len(rows)} of {len(rows)} samples in {tmp_path / 'out' / 'nano'} have no answer" in finished.stderr
    assert rows[0]["error"] in finished.stderr and "--retry-failed" in finished.stderr
    assert not (tmp_path / "out" / "nano" / "metrics.json").exists()


# --- rescoring -------------------------------------------------------------------------------------------------------


def test_rescoring_needs_no_model_and_no_data(unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(pllava, "load_model", fail_to_load)
    shutil.copytree(unbroken, tmp_path / "nano")
    before, found = lines(unbroken), metrics(unbroken)
    for folder in (tmp_path / "nano", tmp_path / "nano" / "no_video"):
        (folder / "predictions.jsonl").write_text(to_lines({**row, "correct": False} for row in lines(folder)))
    finished = invoke("--rescore", tmp_path)
    assert finished.exit_code == 0, finished.output
    assert lines(tmp_path / "nano") == before
    again = metrics(tmp_path / "nano")
    assert again == found
    assert lines(tmp_path / "nano" / "no_video") == lines(unbroken / "no_video")
    assert (tmp_path / "nano" / "report.md").read_text() == (unbroken / "report.md").read_text()


def test_rescoring_keeps_the_samples_of_each_variant(nano, world, tmp_path):
    """A sweep over a part of the samples, beside a run over all of them."""
    evaluate(benchmark("nano"), nano, str(world), tmp_path)
    sweep = parse_sweep("pooling=average-8x3x3", nano.model.config)
    evaluate(benchmark("nano"), nano, str(world), tmp_path, sweep, limit=1)
    folders = tmp_path / "nano", tmp_path / "nano" / sweep[0].name
    before = [metrics(folder) for folder in folders]
    assert before[0]["expected"] > before[1]["expected"]
    assert invoke("--rescore", tmp_path).exit_code == 0
    assert [metrics(folder) for folder in folders] == before


def test_rescoring_applies_a_changed_rule(nano, world, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump(
            {"title": "Mine", "read": "rows", "score": "mine.py:score", "tasks": {"all": {"file": "questions.jsonl"}}}
        )
    )
    (tmp_path / "mine.py").write_text("def score(sample, answer):\n    return 1.0\n")
    evaluate(load_benchmark(str(file), {}), nano, str(world), tmp_path / "out")
    (tmp_path / "mine.py").write_text("def score(sample, answer):\n    return sample.reference in answer\n")
    finished = invoke("--rescore", tmp_path / "out" / "mine", "--benchmark", file)
    assert finished.exit_code == 0, finished.output
    found = metrics(tmp_path / "out" / "mine")
    assert found["accuracy"] > 0.5 and "score" not in found


def test_rescoring_judges_saved_answers(nano, tmp_path):
    write_videoqa(tmp_path, "msvd_qa")
    evaluate(benchmark("msvd_qa"), nano, str(tmp_path), tmp_path / "out")
    shutil.rmtree(tmp_path / "VideoQA")
    first = lines(tmp_path / "out" / "msvd_qa")[0]["question"]
    unclear = True

    def answer(request):
        is_first = json.loads(request["messages"][1]["content"])["question"] == first
        return Reply("hm" if unclear and is_first else json.dumps({"pred": "yes", "score": 4}))

    with chat_server(answer) as (url, stub):
        judge = ["--judge", "stub", "--judge-endpoint", url]
        # A run that asks the judge nothing keeps the counts of the run before
        for more, judged, asked in (([], 3, 5), ([], 3, 5), (["--retry-failed"], 4, 1)):
            finished = invoke("--rescore", tmp_path / "out", *judge, *more)
            assert finished.exit_code == 0, finished.output
            found = metrics(tmp_path / "out" / "msvd_qa")
            assert (found["evaluated"], found["judge_failed"]) == (judged, 4 - judged)
            assert found["judge"].items() >= {"asked": asked, "prompt_tokens": 100 * asked}.items()
            unclear = False
    assert len(stub.requests) == 6


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nano", "--data", "x", "--controls"], "leave MODEL, --data, --controls out"),
        (["--batch-size", 3, "--num-frames", 8, "--alpha", 2], "leave --alpha, --num-frames, --batch-size out"),
        ([], "lacks answers of its run"),
    ],
)
def test_rescoring_refuses_model_options_and_incomplete_answers(unbroken, tmp_path, arguments, problem):
    shutil.copytree(unbroken, tmp_path / "nano")
    rows = lines(unbroken)
    (tmp_path / "nano" / "predictions.jsonl").write_text(to_lines(rows[:-1]))
    finished = invoke(*arguments, "--rescore", tmp_path / "nano")
    assert finished.exit_code == (2 if arguments else 1) and problem in finished.stderr
    assert lines(tmp_path / "nano") == rows[:-1]
    empty = tmp_path / "empty"
    empty.mkdir()
    finished = invoke("--rescore", empty)
    assert finished.exit_code == 1 and "has no results" in finished.stderr


@pytest.mark.parametrize("name", ["no_video", "alpha=4"])
def test_variant_is_not_rescored_as_a_plain_run(unbroken, tmp_path, name):
    """It would get the metadata for the model's card."""
    shutil.copytree(unbroken, tmp_path / "nano")
    folder = tmp_path / "nano" / name
    if name == "alpha=4":  # only its name differs from the plain run's folder
        shutil.copytree(unbroken, folder, ignore=shutil.ignore_patterns("no_video"))
    before = content(tmp_path)
    finished = invoke("--rescore", folder)
    assert finished.exit_code == 1 and f"{folder} has a variant's answers only" in finished.stderr
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("predictions.jsonl", '{"foo": 1}\n', "predictions.jsonl, line 1 lacks 'id'"),
        ("run.json", '{"benchmark"', "run.json is not valid JSON"),
        ("run.json", "{}", "run.json lacks 'benchmark', 'samples'"),
        ("metrics.json", '{"benchmark": "nano"', "metrics.json is not valid JSON"),
    ],
)
def test_invalid_results_file_is_reported_by_name(unbroken, tmp_path, name, text, problem):
    shutil.copytree(unbroken, tmp_path / "nano")
    (tmp_path / "nano" / name).write_text(text)
    finished = invoke("--rescore", tmp_path)
    assert finished.exit_code == 1 and f"Error: {tmp_path / 'nano' / problem}" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("--compare a b --controls --limit 3 --judge x", "leave --limit, --controls, --judge out"),
        ("--judge-rpm 3 --judge-price 1 2", "There is no --judge: leave --judge-rpm, --judge-price out"),
        ("--judge x --judge-temperature 1", "is greedy, and no server: leave --judge-temperature out"),
        ("--concurrency 3", "neither --endpoint nor --judge-endpoint: leave --concurrency out"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    finished = invoke(*arguments.split())
    assert finished.exit_code == 2 and problem in finished.stderr
    assert not list(tmp_path.iterdir())
