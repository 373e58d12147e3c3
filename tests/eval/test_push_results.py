"""Results on the Hub: in a model's card, in `.eval_results`, and as a dataset of predictions."""

import json
import re
import shutil
from dataclasses import replace
from decimal import Decimal

import forked
import pytest
import yaml
from hub_client import online
from huggingface_hub import EvalResult, ModelCard, ModelCardData, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from local_hub import local_hub

from pllava import PllavaConfig
from pllava.eval import PLAIN, Judge, Variant, evaluate, load_benchmark, load_prompts, parse_sweep
from pllava.eval.models.answerer import Answer, Timing
from pllava.eval.models.openai_client import Reply
from pllava.files import to_lines
from pllava.hub_cards.cards.results_section import BEGIN, END, add_results, read_card
from pllava.hub_cards.predictions import features_of, stage_predictions
from pllava.model_card_pllava import build_card, is_generated, sign
from pllava.nano.world.rendering import render
from pllava.result_files.reading import read_results, recommended_alphas

SAMPLES = 15  # 4 of them right are 0.26666666666666666, of which 100 * and repr() make other digits
NO_VIDEO = Variant("no_video", control="no_video")
CARD = "---\nlicense: mit\ntags:\n- mine\n---\n\n# My model\n\nHow to use it.\n"


class ScriptedModel:
    """Answers as many of the first samples correctly as `right` says of the variant; one clip cannot be read."""

    def __init__(self, folder, right, **described):
        self.folder, self.right, self.timing = folder, right, Timing()
        self.described = {"model": str(folder / "my pllava" / "checkpoint"), "revision": "0123456789abcdef"}
        self.described |= {"num_frames": 16, "pooling": "average-16x12x12", "endpoint": "http://10.1.2.3/v1"}
        self.described |= described

    def describe(self, variant):
        return {**self.described, "control": variant.control, "alpha": variant.alpha}

    def answers(self, work):
        for variant in work.variants:
            for number, sample in enumerate(work.samples):
                text = sample.reference if number < self.right[variant.name] else "Ran."
                answer = Answer((text,) * len(sample.questions))
                if number == SAMPLES - 1:
                    answer = Answer(error=f"cannot open {sample.video}: No such file: '{self.folder}/x/y.mp4'")
                yield variant, [(sample, answer)]


class Grader:
    """A local judge, which fails at the second sample."""

    def __init__(self, folder, **verdict):
        self.model, self.verdict = str(folder / "my judge"), verdict

    def replies(self, chats, **_):
        for number, chat in enumerate(chats):
            told = json.loads(chat[1]["content"])
            right = told["answer"] == told["reference"]
            reply = self.verdict | {"score": 5 if right else 1}
            yield number, Reply("?" if "of 1?" in told["question"] else json.dumps(reply))


def declare(folder, name, **keys):
    """Declare a benchmark of two tasks."""
    rows = [
        {"video": f"clips of mine/{n}.mp4", "question": f"What of {n}?", "answer": "Sat.", "type": "ab"[n % 2]}
        | ({"options": ["Ran.", "Sat."]} if keys["score"] == "multiple_choice" else {})
        for n in range(SAMPLES)
    ]
    (folder / "clips of mine").mkdir(parents=True, exist_ok=True)
    for n in range(SAMPLES):
        (folder / "clips of mine" / f"{n}.mp4").touch()
    (folder / f"{name}.jsonl").write_text(to_lines(rows))
    tasks = {task: {"file": f"{name}.jsonl", "judge": ["answer"]} for task in ("all",)}
    declared = {"title": name.title(), "read": "rows", "tasks": tasks, **keys}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(declared))
    return load_benchmark(str(folder / f"{name}.yaml"), load_prompts())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """
    A folder with results in `out`: of "mine", a plain run, a control and a sweep over alpha; of "judged", a plain run.
    Besides it has their declarations.
    """
    folder = tmp_path_factory.mktemp("folder of mine")
    mine = declare(
        folder, "mine", score="multiple_choice", hub="ours/mine", hub_benchmark={"id": "ours/mine", "task_id": "all"}
    )
    sweep = parse_sweep("alpha=2,4,8", PllavaConfig())
    right = {"": 4, "no_video": 2, "alpha=2": 5, "alpha=4": 9, "alpha=8": 9}
    evaluate(mine, ScriptedModel(folder, right), str(folder), folder / "out", [PLAIN, NO_VIDEO, *sweep])
    judge = Judge(Grader(folder, pred="yes"), load_prompts()["judge"], folder / "cache.jsonl", temperature=0.5)
    judged = declare(folder, "judged", score="judge")
    evaluate(judged, ScriptedModel(folder, {"": 7}), str(folder), folder / "out", judge=judge)
    return folder


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def shifted(value):
    """A fraction of metrics.json in per cent, digit by digit."""
    return Decimal(repr(value)).scaleb(2)


def written(text):
    """Return the values and arguments in a model-index, as they are written, by (benchmark, metric)."""
    found = {}
    for result in yaml.load(text, yaml.BaseLoader)["model-index"][0]["results"]:
        for metric in result["metrics"]:
            arguments = {**result["dataset"]["args"], **metric["args"]}
            found[result["dataset"]["config"], metric["name"]] = metric["value"], arguments
    return found


def check_digits(results, out):
    """Compare written results with the metrics.json of "mine" and "judged", digit by digit."""
    mine, judged = metrics_of(out / "mine"), metrics_of(out / "judged")
    value, arguments = results["mine", "accuracy (%)"]
    assert value == "26.666666666666666" and Decimal(value) == shifted(mine["accuracy"])
    assert [Decimal(end) for end in arguments["interval_95"]] == [shifted(end) for end in mine["accuracy_ci"]]
    assert Decimal(arguments["chance"]) == 50 and Decimal(arguments["coverage_percent"]) == shifted(mine["coverage"])
    counts = {name: arguments[name] for name in ("evaluated", "expected", "unreadable", "truncated", "empty")}
    assert counts == {"evaluated": "14", "expected": "15", "unreadable": "1", "truncated": "0", "empty": "0"}
    assert arguments["prompt_hash"] == mine["run"]["prompts"] and arguments["model_revision"] == "0123456789abcdef"
    assert (arguments["num_frames"], arguments["pooling"]) == ("16", "average-16x12x12")
    assert arguments["hardware"] == mine["hardware"] and arguments["seconds"] == repr(mine["time"]["seconds"])
    value, arguments = results["judged", "score (0 to 5)"]
    assert value == repr(judged["score"]) and [*map(float, arguments["interval_95"])] == judged["score_ci"]
    assert (arguments["judge"], arguments["judge_temperature"], arguments["judge_failed"]) == ("my judge", "0.5", "1")
    assert results["judged", "accuracy (%)"][0] == str(shifted(judged["accuracy"]))


# --- model-index.yaml and eval-results.yaml --------------------------------------------------------------------------


def test_model_index_has_all_digits_and_settings(folder):
    texts = [(folder / "out" / name / "model-index.yaml").read_text() for name in ("mine", "judged")]
    check_digits(written(texts[0]) | written(texts[1]), folder / "out")
    assert str(folder) not in "".join(texts)


def test_model_index_is_read_and_written_by_huggingface_hub(folder):
    text = (folder / "out" / "mine" / "model-index.yaml").read_text()
    name, results = model_index_to_eval_results(yaml.safe_load(text)["model-index"])
    assert name == "my pllava" and results[0].metric_value == float("26.666666666666666")
    (mine,) = read_results(folder / "out" / "mine")
    data = yaml.load(ModelCardData(model_name=name, eval_results=mine.eval_results).to_yaml(), yaml.BaseLoader)
    assert data == yaml.load(text, yaml.BaseLoader)


def test_each_aspect_of_a_judge_is_a_result(tmp_path):
    """They are entries of their own where there are several."""
    judge = Judge(Grader(tmp_path), load_prompts()["judge"], tmp_path / "cache.jsonl")
    benchmark = declare(tmp_path, "several", score="judge")
    benchmark.tasks["all"]["judge"] = ["correctness", "detail"]
    evaluate(benchmark, ScriptedModel(tmp_path, {"": 7}), str(tmp_path), tmp_path, judge=judge)
    found, results = metrics_of(tmp_path / "several"), written((tmp_path / "several" / "model-index.yaml").read_text())
    for aspect in ("correctness", "detail"):
        value, arguments = results["several", f"{aspect} (0 to 5)"]
        assert value == repr(found["aspects"][aspect]["score"]) and arguments["graded"] == "14"


def test_entry_for_a_leaderboard_is_written_if_the_hub_has_one(folder):
    (entry,) = parse_eval_result_entries(yaml.safe_load((folder / "out" / "mine" / "eval-results.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("ours/mine", "all", float("26.666666666666666"))
    assert entry.notes.startswith("accuracy (%) 26.7 [") and entry.notes.endswith("coverage 93.3% of 15 samples")
    assert not (folder / "out" / "judged" / "eval-results.yaml").exists()


def test_part_of_a_benchmark_gets_no_entry_for_a_leaderboard(tmp_path):
    benchmark = declare(tmp_path, "part", score="exact", hub_benchmark={"id": "ours/part", "task_id": "all"})
    evaluate(benchmark, ScriptedModel(tmp_path, {"": 4}), str(tmp_path), tmp_path, limit=5)
    assert (tmp_path / "part" / "model-index.yaml").exists()
    assert not (tmp_path / "part" / "eval-results.yaml").exists()
    card = ModelCard(CARD)
    card.data.model_name = "My model"
    text = add_results(card, read_results(tmp_path / "part"), "me/model-results").text
    assert ", only the first 5 samples of each task. The " in text


@pytest.mark.parametrize(
    "wrong", ["ours/mine", {"id": "ours/mine"}, {"id": "mine", "task_id": "a"}, {"id": "ours/mine", "task_id": 1}]
)
def test_wrong_name_of_a_leaderboard_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"`hub_benchmark` names a Benchmark of the Hub .* got "):
        declare(tmp_path, "mine", score="exact", hub_benchmark=wrong)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_results_are_read(folder):
    judged, mine = read_results(folder / "out")
    assert (judged.title, mine.title) == ("Judged", "Mine")
    assert mine.controls.keys() == {"no video"} and [alpha for alpha, _ in mine.sweeps["alpha"]] == [2, 4, 8]
    alpha, metrics = recommended_alphas([judged, mine])["Mine"]
    assert alpha == 4 and metrics["accuracy"] == 9 / SAMPLES  # of equal ones the lowest
    assert recommended_alphas([judged]) == {}


def test_run_that_was_stopped_is_refused(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    (tmp_path / "out" / "mine" / "alpha=4" / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"alpha=4 has no metrics.json, since its run was stopped: run the same"):
        read_results(tmp_path / "out")


def test_run_that_lacks_predictions_is_refused(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    file = tmp_path / "out" / "mine" / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"mine has 14 predictions, but metrics of 15: a run was stopped in it"):
        stage_predictions(tmp_path / "out", tmp_path / "stage", "me/model-results", "me/model")


def test_results_of_several_models_or_of_another_model_are_refused(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    file = tmp_path / "out" / "judged" / "run.json"
    run = json.loads(file.read_text())
    file.write_text(json.dumps({**run, "model": "/other"}))
    with pytest.raises(ValueError, match=r"has results of /other, and .* publish the folder of each benchmark"):
        stage_predictions(tmp_path / "out", tmp_path / "stage", "me/model-results", "me/model")
    del run["endpoint"]
    file.write_text(json.dumps({**run, "model": "you/model", "revision": 40 * "a"}))
    with pytest.raises(ValueError, match=r"has results of you/model, not of me/model: push them to you/model"):
        stage_predictions(tmp_path / "out" / "judged", tmp_path / "stage", "me/model-results", "me/model")


# --- cards -----------------------------------------------------------------------------------------------------------


def test_results_are_put_into_a_card_and_replaced_in_it(folder):
    results = read_results(folder / "out")
    card = ModelCard(CARD)
    card.data.model_name = "My model"
    others = [
        EvalResult("video-text-to-text", "ours/mine", "Mine", "accuracy", 1.0, metric_name="accuracy (%)"),
        EvalResult("video-text-to-text", "ours/mine", "Mine", "f1", 2.0),
        EvalResult("video-text-to-text", "other", "Other", "accuracy", 3.0, metric_name="accuracy (%)"),
    ]
    published = replace(others[0], source_name="a paper", source_url="https://example.org")
    card.data.eval_results = [*others, published]
    once = str(add_results(card, results, "me/model-results"))
    card.text += "\nMore text.\n"
    twice = add_results(card, results, "me/model-results")
    assert str(twice) == f"{once}\nMore text.\n"
    values = [result.metric_value for result in twice.data.eval_results if result.source_name != "predictions"]
    assert values == [2, 3, 1], "the same metric without a source is replaced"
    (end,) = re.findall(f"How to use it.\n\n{BEGIN}.*{END}\n(.*)", twice.text, re.DOTALL)
    assert end == "\nMore text.\n" and twice.data.license == "mit" and twice.data.tags == ["mine"]
    assert {result.source_url for result in twice.data.eval_results if result.source_name == "predictions"} == {
        "https://huggingface.co/datasets/me/model-results"
    }


def test_numbers_in_a_card_keep_their_digits(folder, tmp_path):
    """Of a result that stays while others are added."""
    card = ModelCard(CARD)
    card.data.model_name = "My model"
    (tmp_path / "README.md").write_text(str(add_results(card, read_results(folder / "out" / "mine"), "me/a")))
    card = add_results(read_card(tmp_path / "README.md"), read_results(folder / "out" / "judged"), "me/b")
    check_digits(written(str(card).split("---", 2)[1]), folder / "out")


def test_card_with_broken_metadata_is_named(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [a\n---\n")
    with pytest.raises(ValueError, match=r"README.md has invalid metadata \(.*\): mend it, then run this again"):
        read_card(tmp_path / "README.md")


def test_section_has_rounded_values_and_says_on_what_they_depend(folder):
    results = read_results(folder / "out")
    card = ModelCard(CARD)
    card.data.model_name = "My model"
    text = add_results(card, results, "me/model-results").text.replace("\N{NO-BREAK SPACE}", " ")
    mine, judged = metrics_of(folder / "out" / "mine"), metrics_of(folder / "out" / "judged")
    low, high = (f"{100 * end:.1f}" for end in mine["accuracy_ci"])
    prompts = f"`{mine['run']['prompts']}`"
    assert f"| Mine | accuracy (%) | 26.7 [{low}, {high}] | 93.3% of 15 |  | {prompts} |" in text
    low, high = (f"{end:.2f}" for end in judged["score_ci"])
    assert f"|  | score (0 to 5) | {judged['score']:.2f} [{low}, {high}] |  |  |  |" in text
    assert re.search(r"\| Judged \| accuracy \(%\) \| .* \| 86.7% of 15 \| my judge \| `", text)
    assert "Judged: 1 unreadable, 1 ungraded." in text and "Mine: 1 unreadable." in text
    assert re.search(r"\| Mine \| accuracy \(%\) \| \*\*4\*\* \| 60.0 \[.*\] \| 2: 33.3, 8: 60.0 \|", text)
    assert "Gain from the whole video in accuracy (%): 13.3 over no video." in text
    assert "16 frames, average-pooled to 16 x 12 x 12, model `0123456789abcdef`, chance level 50.0. The " in text
    assert "26.66" not in text and str(folder) not in text


def test_long_tables_are_folded(folder, tmp_path):
    shutil.copytree(folder / "out" / "mine", tmp_path / "mine")
    found = metrics_of(tmp_path / "mine")
    found["per_task"] = {f"task {number}": found["per_task"]["a"] for number in range(20)}
    (tmp_path / "mine" / "metrics.json").write_text(json.dumps(found))
    card = ModelCard(CARD)
    card.data.model_name = "My model"
    for results, folded in ((tmp_path, True), (folder / "out" / "mine", False)):
        text = add_results(card, read_results(results), "me/model-results").text
        assert ("<details><summary>accuracy (%) by task</summary>\n\n| task |" in text) is folded


# --- predictions -----------------------------------------------------------------------------------------------------


def test_no_local_path_is_published(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    with (tmp_path / "out" / "judged" / "report.md").open("a") as report:  # as beside the paper's figures
        report.write(f"| 7.0 | {folder / 'my judge'}, not the paper's |\n")
    stage_predictions(tmp_path / "out", tmp_path / "stage", "me/model-results", "me/model")
    tmp_path = tmp_path / "stage"
    texts = {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".png"}
    assert len(texts) > 20
    for file, text in texts.items():
        assert not re.search(rf"{folder.name}|/x/|clips of mine|10\.1\.2\.3|checkpoint", text), file
    run = json.loads((tmp_path / "mine" / "run.json").read_text())
    assert (run["model"], run["revision"]) == ("me/model", "0123456789abcdef")
    assert metrics_of(tmp_path / "judged")["judge"]["model"] == "my judge"
    assert "- model: me/model\n" in (tmp_path / "mine" / "report.md").read_text()
    rows = [json.loads(line) for line in (tmp_path / "mine" / "predictions.jsonl").open()]
    assert (rows[0]["video"], rows[-1]["error"]) == ("0.mp4", "cannot open 14.mp4: No such file: 'y.mp4'")


def test_adapter_is_named_by_its_id_and_its_base_by_a_short_name(folder, tmp_path):
    shutil.copytree(folder / "out" / "judged", tmp_path / "judged")
    file = tmp_path / "judged" / "run.json"
    run = {**json.loads(file.read_text()), "model": "/bases/pllava-7b", "adapter": "/runs/lora", "alpha": 4.0}
    file.write_text(json.dumps(run))
    stage_predictions(tmp_path / "judged", tmp_path / "stage", "me/lora-results", "me/lora")
    published = json.loads((tmp_path / "stage" / "judged" / "run.json").read_text())
    assert (published["model"], published["adapter"]) == ("pllava-7b", "me/lora")


def test_types_of_columns():
    rows = [{"id": "a", "start": 1, "question": "b"}, {"id": "c", "start": 0.5, "question": ["d"], "right": True}]
    types = {column["name"]: column["dtype"] for column in features_of([*rows, {"id": "e", "n": 1, "right": None}])}
    assert types == {"id": "string", "start": "float64", "question": "json", "right": "bool", "n": "int64"}


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    """A local Hub with a model, and the environment of its clients."""
    model = tmp_path / "hub" / "me" / "model"
    model.mkdir(parents=True)
    (model / "README.md").write_text(CARD)
    with local_hub(tmp_path / "hub") as address:
        yield address, online(address, tmp_path / "home")


def push(results, folder, environment):
    declared = f"{folder / 'mine.yaml'},{folder / 'judged.yaml'}"
    arguments = ["eval", "--rescore", results, "--benchmark", declared, "--push", "me/model"]
    finished = forked.run("pllava", *arguments, **environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def download(kind, repository, target, environment):
    arguments = f"{repository!r}, repo_type={kind!r}, local_dir={str(target)!r}"
    program = f"from huggingface_hub import snapshot_download\nsnapshot_download({arguments})"
    finished = forked.run("-c", program, **environment)
    assert finished.returncode == 0, finished.stderr
    return target


def test_results_are_pushed_and_computed_again_from_the_download(folder, hub, tmp_path):
    _, environment = hub
    shutil.copytree(folder / "out", tmp_path / "out")
    address = environment["HF_ENDPOINT"]
    assert push(tmp_path / "out", folder, environment)[-2:] == [
        f"See {address}/me/model",
        f"See {address}/datasets/me/model-results",
    ]
    model = download("model", "me/model", tmp_path / "model", environment)
    text = (model / "README.md").read_text()
    assert (
        text.startswith("---\nlicense: mit\ntags:\n- mine\nmodel-index:") and "\n# My model\n\nHow to use it." in text
    )
    check_digits(written(text.split("---", 2)[1]), tmp_path / "out")
    assert "source:\n      url: https://huggingface.co/datasets/me/model-results\n      name: predictions" in text
    (entry,) = parse_eval_result_entries(yaml.safe_load((model / ".eval_results" / "mine.yaml").read_text()))
    assert (
        entry.value == float("26.666666666666666")
        and entry.source_url == "https://huggingface.co/datasets/me/model-results"
    )
    assert [file.name for file in (model / ".eval_results").iterdir()] == ["mine.yaml"]

    results = download("dataset", "me/model-results", tmp_path / "download", environment)
    published = {file: json.loads(file.read_text()) for file in results.rglob("metrics.json")}
    assert len(published) == 6
    assert {file.name for file in results.iterdir()} == {"README.md", "judged", "mine", ".cache"}
    for file in published:
        local = json.loads((tmp_path / "out" / file.relative_to(results)).read_text())
        unequal = {name for name in local if local[name] != published[file][name]}
        assert unequal == ({"run", "judge"} if "judge" in local else {"run"})
        file.unlink()
        file.write_text(json.dumps({"benchmark": "", "run": {}, "time": published[file]["time"], "hardware": "a GPU"}))
    declared = f"{folder / 'mine.yaml'},{folder / 'judged.yaml'}"
    finished = forked.run("pllava", "eval", "--rescore", results, "--benchmark", declared)
    assert finished.returncode == 0, finished.stderr
    for file, metrics in published.items():
        again = json.loads(file.read_text())
        assert {**again, "judge": metrics.get("judge")} == {
            **metrics,
            "judge": metrics.get("judge"),
            "hardware": "a GPU",
        }


def test_second_push_replaces_and_keeps_other_benchmarks(folder, hub, tmp_path):
    _, environment = hub
    shutil.copytree(folder / "out", tmp_path / "out")
    for name in ("mine", "judged", "mine"):
        push(tmp_path / "out" / name, folder, environment)
    text = (download("model", "me/model", tmp_path / "model", environment) / "README.md").read_text()
    check_digits(written(text.split("---", 2)[1]), tmp_path / "out")
    assert text.count(BEGIN) == text.count(END) == text.count("| Mine | accuracy (%) | 26.7") == 1
    assert text.count("| Judged | accuracy (%) |") == text.count("value: 26.666666666666666\n") == 1
    results = download("dataset", "me/model-results", tmp_path / "download", environment)
    configs = yaml.safe_load((results / "README.md").read_text().split("---")[1])["configs"]
    assert [config["config_name"] for config in configs] == [
        "judged",
        "mine",
        "mine-alpha=2",
        "mine-alpha=4",
        "mine-alpha=8",
        "mine-no_video",
    ]


def test_predictions_are_loaded_as_a_dataset(folder, hub, tmp_path):
    """With rows of other types and columns far behind the first ones, from which datasets would infer them."""
    _, environment = hub
    shutil.copytree(folder / "out", tmp_path / "out")
    push(tmp_path / "out", folder, environment)
    stage, rows = tmp_path / "many", [{"id": str(n), "prediction": 300 * "x"} for n in range(50_000)]
    (stage / "mine").mkdir(parents=True)
    rows.append({"id": "last", "prediction": ["a", "b"], "error": "broken", "scores": {"answer": 1}})
    (stage / "mine" / "predictions.jsonl").write_text(to_lines(rows))
    for name in ("run.json", "metrics.json"):
        shutil.copyfile(tmp_path / "out" / "mine" / name, stage / "mine" / name)
    shutil.copytree(stage / "mine", stage / "mine" / "alpha=4")
    program = (
        "import sys\nfrom datasets import load_dataset\nfrom pathlib import Path\n"
        "from pllava.hub_cards.predictions import write_predictions_card\n"
        "for config in ('mine', 'mine-alpha=4', 'judged'):\n"
        "    rows = load_dataset('me/model-results', config, split='test')\n"
        "    print(len(rows), rows[0]['video'], rows[-1]['error'], rows[0]['error'], sep='|')\n"
        "print(rows[0]['judge']['model'], rows[0]['scores'], sep='|')\n"
        f"write_predictions_card(Path({str(stage)!r}), 'me/many', 'me/model')\n"
        f"print(load_dataset({str(stage)!r}, 'mine-alpha=4', split='test')[-1]['prediction'])\n"
    )
    finished = forked.run("-c", program, **environment)
    assert finished.returncode == 0, finished.stderr
    error = "cannot open 14.mp4: No such file: 'y.mp4'"
    expected = [*3 * [f"15|0.mp4|{error}|None"], "my judge|{'answer': 5}", "['a', 'b']"]
    assert finished.stdout.splitlines() == expected


def test_run_pushes_from_its_main_process_only(hub, tmp_path):
    _, environment = hub
    render(tmp_path / "world", clips=2, seed=1)
    arguments = ["eval", "--data", tmp_path / "world", "--out", tmp_path / "out", "--limit", "1", "--push", "me/model"]
    (tmp_path / "outputs").mkdir()
    ranks = [{**rank, **environment} for rank in forked.ranks(2)]
    both = forked.run_group(ranks, "pllava", *arguments, folder=tmp_path / "outputs")
    assert [each.returncode for each in both] == [0, 0], both
    assert [each.stdout.count("See http") for each in both] == [2, 0]
    card = read_card(download("model", "me/model", tmp_path / "model", environment) / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == shifted(metrics_of(tmp_path / "out" / "nano")["accuracy"])


def test_push_to_no_model_is_refused_before_the_run(hub, tmp_path):
    _, environment = hub
    arguments = ["eval", "--data", tmp_path / "missing", "--out", tmp_path / "out", "--push", "me/typo"]
    finished = forked.run("pllava", *arguments, **environment)
    assert finished.returncode == 1 and finished.stderr.splitlines()[-1] == (
        "Error: me/typo: there is no such model on the Hub; publish it first with `pllava push`"
    )
    finished = forked.run("pllava", "eval", "--compare", tmp_path, tmp_path, "--push", "me/model", **environment)
    assert finished.returncode == 2 and finished.stderr.splitlines()[-1] == (
        "Error: --compare reads saved results as they are: leave --push out"
    )


def test_commit_is_made_again_if_the_repository_has_changed(folder, hub, tmp_path):
    """Somebody else was faster, once for the dataset and twice for the model; but a refusal is final."""
    hub, environment = hub
    shutil.copytree(folder / "out" / "judged", tmp_path / "judged")

    def commits():
        return [seen.status for seen in hub.requests if seen.method == "POST" and "/commit/" in seen.path]

    hub.faults.answer(403, "datasets/me/model-results/commit", "POST")
    arguments = ["eval", "--rescore", tmp_path / "judged", "--benchmark", folder / "judged.yaml", "--push", "me/model"]
    finished = forked.run("pllava", *arguments, **environment)
    assert finished.returncode == 1 and commits() == [403]
    assert finished.stderr.splitlines()[-1].startswith("Error: me/model-results: the Hub replied 403 ")
    hub.faults.answer(412, "datasets/me/model-results/commit", "POST")
    hub.faults.answer(412, "models/me/model/commit", "POST", times=2)
    push(tmp_path / "judged", folder, environment)
    assert commits() == [403, 412, 200, 412, 412, 200]
    push(tmp_path / "judged", folder, environment)
    assert len(commits()) == 6, "there is nothing new"


def test_generated_card_gets_its_results_before_the_limits(folder, processor):
    """It is not a generated one from then on, so that pushing the model again does not lose the results."""
    card = ModelCard(sign(str(build_card("me/model", processor, processor=True))))
    assert is_generated(str(card))
    card.data.model_name = "My model"
    text = str(add_results(card, read_results(folder / "out"), "me/model-results"))
    assert text.index("## How to use") < text.index(BEGIN) < text.index(END) < text.index("## Limits and bias")
    assert "not edited while" not in text and not is_generated(text) and text.endswith("```\n")
