"""Whole evaluations: benchmarks in their original layouts, real clips, and nano."""

import json
import os
import shutil
import time
from pathlib import Path

import benchmark_folders
import forked
import pytest
import yaml
from benchmark_folders import VIDEOQA_FILES, benchmark, lines, metrics, write_json, write_mvbench
from chat_server import Reply, chat_server
from PIL import Image
from transformers import AutoProcessor, pipeline
from typer.testing import CliRunner
from video_files import white_png

import pllava
from pllava.eval import (
    CONTROL_VARIANTS,
    PLAIN,
    ChatServer,
    Judge,
    LocalModel,
    Variant,
    compare,
    evaluate,
    load_prompts,
    parse_sweep,
    read_samples,
)
from pllava.eval.benchmarks.samples import Sample
from pllava.eval.controls_and_sweeps import choose_frames
from pllava.eval.store import Results
from pllava.files import to_lines
from pllava.nano.world.rendering import read_questions, render
from pllava_cli import app

ALL = ["mvbench", "vcgbench", *VIDEOQA_FILES, "inter4k"]
EXPECTED = {"mvbench": 40, "vcgbench": 9, "inter4k": 3, **dict.fromkeys(VIDEOQA_FILES, 4)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return benchmark_folders.write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips of nano's world, and what can be asked about them."""
    folder = tmp_path_factory.mktemp("world")
    render(folder, clips=10, seed=3)
    return folder


@pytest.fixture(scope="module")
def nano():
    return pllava.load_model(pllava.NANO), AutoProcessor.from_pretrained(pllava.NANO)


def local(nano, **options):
    return LocalModel(*nano, **{"num_workers": 0, **options})


def run(*arguments):
    """Run `pllava eval` in this process."""
    finished = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    assert finished.exit_code == 0, finished.output
    return finished


# --- whole benchmarks ------------------------------------------------------------------------------------------------


def test_all_benchmarks_are_evaluated_in_their_original_layouts(data, tmp_path):
    finished = run("nano", "--benchmark", "mvbench,vcgbench,videoqa,inter4k", "--data", data, "--out", tmp_path)
    for name in ALL:
        folder = tmp_path / name
        found, rows = metrics(folder), lines(folder)
        assert (found["coverage"], found["evaluated"], len(rows)) == (1.0, EXPECTED[name], EXPECTED[name]), name
        assert found["unreadable"] == found["damaged"] == 0
        assert len({row["id"] for row in rows}) == len(rows)
        assert {"id", "task", "video", "question", "reference", "prediction"} <= rows[0].keys()
        assert {"versions", "hardware", "seed", "run", "time", "per_task"} <= found.keys()
        assert found["run"]["prompts"] == benchmark(name).prompt_hash()
        assert "coverage 100.0%" in (folder / "report.md").read_text()
        assert f"coverage 100.0% ({EXPECTED[name]} of {EXPECTED[name]})" in finished.stdout
    found = metrics(tmp_path / "mvbench")
    assert len(found["per_task"]) == 20
    assert all(task["expected"] == 2 for task in found["per_task"].values())
    report = (tmp_path / "mvbench" / "report.md").read_text()
    assert "| PLLaVA 7B | 58.0 |" in report and "per_task.png" in report
    assert Image.open(tmp_path / "mvbench" / "per_task.png").size[0] > 500
    index = yaml.safe_load((tmp_path / "mvbench" / "model-index.yaml").read_text())["model-index"]
    (values,) = {each["value"] for each in index[0]["results"][0]["metrics"] if each["name"] == "accuracy (%)"}
    assert values == pytest.approx(100 * found["accuracy"], abs=0.005)
    assert metrics(tmp_path / "vcgbench")["judged"] is False and "score" not in metrics(tmp_path / "vcgbench")
    assert metrics(tmp_path / "inter4k")["words"] > 0
    consistency = [row for row in lines(tmp_path / "vcgbench") if row["task"] == "consistency_qa"]
    assert all(len(row["question"]) == len(row["prediction"]) == 2 for row in consistency)


def test_broken_clips_count_as_wrong(nano, tmp_path):
    root = write_mvbench(tmp_path / "data")
    samples = read_samples(benchmark("mvbench"), str(tmp_path / "data"))
    broken = [samples[0], samples[7]]
    os.unlink(broken[0].video)
    Path(broken[0].video).write_bytes(white_png(16000, 16000))
    os.unlink(broken[1].video)
    assert root.name == "MVBench"
    (found,) = evaluate(benchmark("mvbench"), local(nano), str(tmp_path / "data"), tmp_path / "out").values()
    assert (found["coverage"], found["unreadable"], found["expected"]) == (0.95, 2, 40)
    rows = lines(tmp_path / "out" / "mvbench")
    errors = {row["id"]: row["error"] for row in rows if "error" in row}
    assert errors.keys() == {sample.id for sample in broken}
    assert "no such file" in errors[broken[1].id]
    assert found["accuracy"] == sum(row["correct"] for row in rows) / 40
    assert found["per_task"][broken[0].task]["coverage"] == 0.5
    assert not {"legacy", "accuracy_legacy"} & found.keys()  # it needs letters, and nano gives none
    assert "2 unreadable" in (tmp_path / "out" / "mvbench" / "report.md").read_text()


def test_nano_is_accurate_and_answers_as_the_pipeline_does(nano, world, tmp_path):
    variants = [PLAIN, *CONTROL_VARIANTS]
    found, *controls = evaluate(benchmark("nano"), local(nano), str(world), tmp_path, variants).values()
    assert found["accuracy"] > 0.85 and len(controls) == len(CONTROL_VARIANTS)
    low, high = found["accuracy_ci"]
    assert low < found["accuracy"] <= high  # nano may be right in all
    assert all(low < each["accuracy"] < high for each in controls for low, high in [each["accuracy_ci"]])
    assert found["per_task"]["colour"]["accuracy"] > 0.9
    model, processor = nano
    pipe = pipeline("video-text-to-text", model, processor=processor)
    rows = lines(tmp_path / "nano")
    questions = read_questions(world)
    assert len(rows) == len(questions)
    for row, question in list(zip(rows, questions, strict=True))[::5]:
        alone = pipe(question["video"], text=question["question"], max_new_tokens=64)[0]["generated_text"]
        assert (row["question"], row["prediction"]) == (question["question"], alone.strip())
        assert row["correct"] == (alone.strip().lower().rstrip(".") == question["answer"].lower().rstrip("."))


def test_batch_size_does_not_change_the_answers(nano, world, tmp_path):
    answers = []
    for size in (1, 5, 16):
        evaluate(benchmark("nano"), local(nano, batch_size=size, num_workers=1), str(world), tmp_path / str(size))
        answers.append([row["prediction"] for row in lines(tmp_path / str(size) / "nano")])
    assert answers[0] == answers[1] == answers[2]


# --- runs that are killed, resumed or shared by processes ------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    run("nano", "--data", world, "--out", out, "--batch-size", 4, "--controls")
    return out / "nano"


def without_time(found):
    return {name: value for name, value in found.items() if name != "time"}


@pytest.mark.parametrize("wanted", [pytest.param(1, marks=pytest.mark.slow), 200])
def test_killed_run_is_resumed(world, unbroken, tmp_path, wanted):
    arguments = ["nano", "--data", world, "--out", tmp_path, "--batch-size", "4", "--controls"]
    killed = forked.start("-m", "pllava.eval", *arguments)
    folders = ["", *(variant.name for variant in CONTROL_VARIANTS)]
    files = [tmp_path / "nano" / folder / "predictions.jsonl" for folder in folders]

    def written():
        return sum(file.read_bytes().count(b"\n") for file in files if file.exists())

    while killed.is_alive() and written() < wanted:
        time.sleep(0.002)
    killed.kill()
    killed.join()
    with files[0].open("ab") as file:
        file.write(b'{"id": "all/0", "pred')  # killed while it wrote a line
    before = written()
    total = sum(len(lines(unbroken / folder)) for folder in folders)
    assert wanted <= before < total
    run(*arguments)
    for folder in folders:
        assert lines(tmp_path / "nano" / folder) == lines(unbroken / folder), folder
        assert without_time(metrics(tmp_path / "nano" / folder)) == without_time(metrics(unbroken / folder)), folder
    assert metrics(tmp_path / "nano")["time"]["answered"] == total - before  # no answer is given twice


def test_finished_run_changes_nothing_when_repeated(world, unbroken):
    before = {file: file.read_bytes() for file in unbroken.rglob("*.json*")}
    run("nano", "--data", world, "--out", unbroken.parent, "--batch-size", 4, "--controls")
    assert {file: file.read_bytes() for file in unbroken.rglob("*.json*")} == before


def test_two_processes_give_the_results_of_one(world, unbroken, tmp_path):
    arguments = ["nano", "--data", world, "--out", tmp_path, "--batch-size", 4, "--controls"]
    for finished in forked.run_group(forked.ranks(2), "-m", "pllava.eval", *arguments, folder=tmp_path):
        assert finished.returncode == 0, finished.stderr
    for folder in ["", *(variant.name for variant in CONTROL_VARIANTS)]:
        assert lines(tmp_path / "nano" / folder) == lines(unbroken / folder)
        assert without_time(metrics(tmp_path / "nano" / folder)) == without_time(metrics(unbroken / folder))
    assert not list(tmp_path.rglob("predictions-*.jsonl"))
    assert metrics(tmp_path / "nano")["time"]["processes"] == 2


def test_answer_of_one_process_replaces_the_error_of_another(tmp_path):
    broken_a, right_a = {"id": "a", "error": "broken"}, {"id": "a", "prediction": "y"}
    broken_b, right_b = {"id": "b", "error": "broken"}, {"id": "b", "prediction": "x"}
    (tmp_path / "predictions.jsonl").write_text(to_lines([broken_a, right_b]))
    (tmp_path / "predictions-1.jsonl").write_text(to_lines([right_a, broken_b]))
    samples = [Sample(name, "t", "v.mp4", ("What?",)) for name in "ab"]
    results = Results(tmp_path, {})
    assert all(results.is_done(sample) for sample in samples)
    assert results.merge(samples) == [right_a, right_b] == lines(tmp_path)


def test_batching_with_questions_before_the_video(nano, world, tmp_path):
    """Prefixes then differ between prompts about the same clip."""
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}USER: "
        "{{ message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}"
        "{% if message.content | selectattr('type', 'equalto', 'video') | list %}<video>{% endif %}"
        " ASSISTANT:{% endif %}{% endfor %}"
    )
    answers = []
    for size in (1, 7):
        model = local(nano, batch_size=size, chat_template=template)
        evaluate(benchmark("nano"), model, str(world), tmp_path / str(size), limit=4)
        answers.append([row["prediction"] for row in lines(tmp_path / str(size) / "nano")])
    assert answers[0] == answers[1] and len(set(answers[0])) > 3


def test_folder_with_another_run_is_refused(nano, world, tmp_path):
    evaluate(benchmark("nano"), local(nano), str(world), tmp_path, limit=1)
    with pytest.raises(ValueError, match="answers of a run with .*'limit': 1.*, not .*'limit': 2"):
        evaluate(benchmark("nano"), local(nano), str(world), tmp_path, limit=2)
    with pytest.raises(ValueError, match="chat_template"):
        evaluate(benchmark("nano"), local(nano, chat_template="eval_mvbench"), str(world), tmp_path, limit=1)


# --- controls and sweeps ---------------------------------------------------------------------------------------------


def test_controls_lower_the_accuracy(unbroken):
    plain = metrics(unbroken)
    by_control = {variant.name: metrics(unbroken / variant.name) for variant in CONTROL_VARIANTS}
    for name, found in by_control.items():
        assert found["variant"] == found["run"]["control"] == name
        assert found["accuracy"] < plain["accuracy"]
    assert by_control["no_video"]["accuracy"] < by_control["one_frame"]["accuracy"]
    direction = by_control["reversed"]["per_task"]["direction"]["accuracy"]
    assert direction < 0.2 < 0.9 < plain["per_task"]["direction"]["accuracy"]  # motions are reversed
    assert by_control["reversed"]["per_task"]["colour"]["accuracy"] == plain["per_task"]["colour"]["accuracy"]
    header = "| nano, accuracy (%) | no video | one frame | frames shuffled | frames reversed |"
    assert header in (unbroken / "report.md").read_text()


def test_choose_frames():
    clip = ("here/a.mp4", None, None)
    assert choose_frames(None, 4, clip) == [0, 1, 2, 3]
    assert choose_frames("reversed", 4, clip) == [3, 2, 1, 0]
    assert choose_frames("one_frame", 5, clip) == [2]
    shuffled = choose_frames("shuffled", 16, clip)
    assert sorted(shuffled) == list(range(16)) != shuffled
    assert shuffled == choose_frames("shuffled", 16, ("elsewhere/a.mp4", None, None))
    for other in (("here/b.mp4", None, None), ("here/a.mp4", 1.0, None)):
        assert choose_frames("shuffled", 16, other) != shuffled


def test_sweep_of_poolings(nano, world, tmp_path):
    """Each has the answers of a model that is given this pooling; the model keeps its own."""
    model, processor = nano
    variants = parse_sweep("pooling=average-16x3x3,average-16x1x1,slowfast,merge", model.config)
    found = evaluate(benchmark("nano"), local(nano), str(world), tmp_path, [PLAIN, *variants])
    assert str(model.config.video_pooling) == "average-16x3x3"
    own = found["pooling=average-16x3x3"]
    assert own["accuracy"] == found[""]["accuracy"] > found["pooling=average-16x1x1"]["accuracy"]
    assert own["run"] == found[""]["run"]
    text = (tmp_path / "nano" / "report.md").read_text()
    others = ["merge-8x3x3", "slowfast-4x3x6+16x1x1"]
    assert f"| accuracy (%) by pooling | average-16x1x1 | {' | '.join(others)} | average-16x3x3 |" in text
    assert Image.open(tmp_path / "nano" / "sweep_pooling.png").size[0] > 500
    answers = [[row["prediction"] for row in lines(tmp_path / "nano")]]
    for pooling in others:
        assert found[f"pooling={pooling}"]["run"]["pooling"] == pooling
        alone = tmp_path / pooling
        run("nano", "--pooling", pooling, "--data", world, "--out", alone, "--workers", 0)
        answers.append([row["prediction"] for row in lines(alone / "nano")])
        assert [row["prediction"] for row in lines(tmp_path / "nano" / f"pooling={pooling}")] == answers[-1]
    assert answers[0] != answers[1] != answers[2] != answers[0]


def test_poolings_without_a_shape_get_one_for_the_frames_that_are_sampled(world, tmp_path):
    arguments = ["--data", world, "--out", tmp_path, "--limit", 1, "--workers", 0]
    finished = run("nano", *arguments, "--num-frames", 8, "--sweep", "pooling=slowfast,merge,average")
    assert "| accuracy (%) by pooling | merge-4x3x3 | slowfast-2x3x6+8x1x1 | average-8x3x3 |" in finished.stdout
    again = run("nano", *arguments, "--num-frames", 8, "--sweep", "pooling=merge-4x3x3")  # goes on in its folder
    assert "merge-4x3x3" in again.stdout
    assert metrics(tmp_path / "nano" / "pooling=merge-4x3x3")["run"]["num_frames"] == 8


def test_sweep_of_alpha(world, tmp_path):
    """Alpha 0 gives the base model's answers, and the adapter's own alpha those of a plain run."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(0)
    config = pllava.lora_config(r=4, lora_alpha=8)
    config.modules_to_save = None
    adapted = get_peft_model(pllava.load_model(pllava.NANO), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    out, sweep = tmp_path / "out", ["--sweep", "alpha=0,8,32"]
    finished = run("--adapter", tmp_path / "adapter", "--data", world, "--out", out, "--limit", 3, *sweep)
    assert "| accuracy (%) by alpha | 0 | 8 | 32 |" in finished.stdout and (out / "nano" / "sweep_alpha.png").exists()
    for name, arguments in {"base": ["nano"], "own": ["--adapter", tmp_path / "adapter"]}.items():
        run(*arguments, "--data", world, "--out", tmp_path / name, "--limit", 3)

    def answers(folder):
        return [row["prediction"] for row in lines(folder)]

    assert answers(out / "nano" / "alpha=0") == answers(tmp_path / "base" / "nano")
    assert answers(out / "nano" / "alpha=8") == answers(tmp_path / "own" / "nano")
    assert answers(out / "nano" / "alpha=32") != answers(tmp_path / "base" / "nano")
    assert metrics(tmp_path / "own" / "nano")["run"]["alpha"] == 8
    assert metrics(out / "nano" / "alpha=32")["run"]["alpha"] == 32


def test_parse_sweep():
    config = pllava.PllavaConfig()
    assert Variant("alpha=4", alpha=4.0) in parse_sweep("alpha=0,4", config)
    merge = "merge-8x12x12"
    assert parse_sweep("pooling=merge,merge-8x12x12", config) == [Variant(f"pooling={merge}", pooling=merge)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("beta=1", "a sweep is alpha="),
        ("alpha=", "a sweep is alpha="),
        ("alpha=a", "a sweep is alpha="),
        ("pooling=", "a sweep is alpha="),
        ("pooling=average,maximum", "'maximum' is not a pooling; there are average, slowfast, merge"),
        ("pooling=average-16x12", "three positive integers"),
        ("pooling=average-16x0x3", "three positive integers"),
        ("pooling=merge-8x25x12", "1 to 24 rows and columns"),
    ],
)
def test_invalid_sweep_is_an_error(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_sweep(text, pllava.PllavaConfig())


# --- judges and comparisons ------------------------------------------------------------------------------------------


def judged(nano, data, out, tmp_path, score, model="stub", name="vcgbench"):
    with chat_server(lambda request: Reply(json.dumps(score(request)))) as (url, _):
        judge = Judge(ChatServer(model, url), load_prompts()["judge"], tmp_path / f"{model}.jsonl")
        return evaluate(benchmark(name), local(nano), str(data), out, judge=judge)[""]


def test_vcgbench_is_judged(nano, data, tmp_path):
    def score(request):
        return {"score": 4 if "complete" in request["messages"][0]["content"] else 2}

    found = judged(nano, data, tmp_path / "out", tmp_path, score)
    assert (found["judged"], found["coverage"], found["judge_failed"]) == (True, 1.0, 0)
    means = {name: aspect["score"] for name, aspect in found["aspects"].items()}
    assert means == {"correctness": 2, "detail": 4, "context": 2, "temporal": 2, "consistency": 2}
    assert found["score"] == pytest.approx(12 / 5)
    assert found["score_over_grades"] == pytest.approx((3 * (2 + 4 + 2) + 3 * 2 + 3 * 2) / 15)
    assert found["judge"]["model"] == "stub" and found["judge"]["asked"] == 15
    report = (tmp_path / "out" / "vcgbench" / "report.md").read_text()
    assert "| **this run** | 2.00 | 4.00 | 2.00 | 2.00 | 2.00 | 2.40 |" in report
    assert "cannot be compared" in report


def test_failed_grades_are_counted_and_left_out_of_the_means(nano, data, tmp_path):
    def score(request):
        return {"score": 4} if "complete" in request["messages"][0]["content"] else {"score": 9}

    found = judged(nano, data, tmp_path / "out", tmp_path, score)
    assert (found["score"], found["judge_failed"], found["coverage"]) == (4.0, 12, 0.0)
    # the original scores them 0
    assert found["legacy"]["correctness"] == {"acc": 0, "score": 0} and found["legacy"]["detail"]["score"] == 4
    assert found["legacy"]["Avg_Score"] == pytest.approx(3 * 4 / 15)
    assert found["aspects"]["detail"]["graded"] == 3
    assert "12 ungraded" in (tmp_path / "out" / "vcgbench" / "report.md").read_text()


def test_judged_benchmark_counts_broken_clips_as_wrong(nano, tmp_path):
    benchmark_folders.write_videoqa(tmp_path / "data", "tgif_qa")
    samples = read_samples(benchmark("tgif_qa"), str(tmp_path / "data"))
    os.unlink(samples[0].video)
    found = judged(
        nano, tmp_path / "data", tmp_path / "out", tmp_path, lambda _: {"pred": "yes", "score": 4}, name="tgif_qa"
    )
    assert (found["accuracy"], found["score"], found["coverage"]) == (0.75, 3.0, 0.75)
    assert found["legacy"] == {"TGIF-QA": {"acc": 75, "score": 3}, "Avg_Acc": 75, "Avg_Score": 3}
    report = (tmp_path / "out" / "tgif_qa" / "report.md").read_text()
    assert "| **this run** | 75.0 | 3.00 |" in report and "| PLLaVA 7B | 77.5 | 4.1 |" in report


def test_compare_two_runs(nano, unbroken, tmp_path):
    name, _, differences = compare(unbroken, unbroken)["nano"]
    assert name == "accuracy" and differences[-1].task == "all"
    assert all(each.first == each.second and each.p_value == 1 for each in differences)
    name, names, differences = compare(unbroken, unbroken / "no_video")["nano"]
    assert names == ("nano", "nano, no video")
    overall, plain = differences[-1], metrics(unbroken)
    assert overall.first == pytest.approx(plain["accuracy"])
    assert overall.second == pytest.approx(metrics(unbroken / "no_video")["accuracy"])
    assert overall.interval[0] < overall.second - overall.first < overall.interval[1] < 0
    assert overall.p_value < 0.01
    assert {each.task for each in differences} == {*plain["per_task"], "all"}
    finished = run("--compare", unbroken.parent, unbroken / "no_video")
    heads = "| task | samples | nano | nano, no video | difference in accuracy (%) [95 % interval] | p |"
    assert heads in finished.stdout


def test_compare_reads_a_last_line_without_newline_and_changes_no_file(unbroken, tmp_path):
    copy = shutil.copytree(unbroken, tmp_path / "copy")
    file = copy / "predictions.jsonl"
    file.write_bytes(file.read_bytes().rstrip())
    before = file.read_bytes()
    differences = compare(unbroken, copy)["nano"].differences
    assert differences[-1].samples == len(lines(unbroken))
    assert file.read_bytes() == before


def test_scores_of_different_judges_are_not_compared(nano, data, tmp_path):
    for model in ("one", "other"):
        judged(nano, data, tmp_path / model, tmp_path, lambda _: {"score": 3}, model)
    with pytest.raises(ValueError, match="such scores cannot be compared"):
        compare(tmp_path / "one", tmp_path / "other")
    assert compare(tmp_path / "one", tmp_path / "one")["vcgbench"][0] == "score"
    evaluate(benchmark("inter4k"), local(nano), str(data), tmp_path / "third")
    with pytest.raises(ValueError, match="no benchmark in common"):
        compare(tmp_path / "one", tmp_path / "third")


def test_captions_are_scored_against_references(nano, data, tmp_path):
    benchmark_folders.write_inter4k(tmp_path / "data")
    file = tmp_path / "data" / "Recaption" / "Inter4K" / "annotations.json"
    rows = json.loads(file.read_text())
    write_json(file, [{**row, "caption": benchmark_folders.scene(n)[1][-1]["answer"]} for n, row in enumerate(rows)])
    (found,) = evaluate(benchmark("inter4k"), local(nano), str(tmp_path / "data"), tmp_path / "out").values()
    assert 0 <= found["rouge_l"] <= 1 and found["cider"] >= 0 and found["words"] > 0
    assert lines(tmp_path / "out" / "inter4k")[0].keys() >= {"rouge_l", "cider", "words"}
