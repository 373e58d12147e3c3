"""lmms-eval evaluates nano on one of its tasks, with local data. Needs `PLLAVA_LMMS_EVAL_PYTHON`, which has both."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from hub_client import run as run_online
from local_hub import local_hub

from pllava import NANO
from pllava.eval.scoring.multiple_choice import option_named
from pllava.nano.world.rendering import render
from pllava.nano.world.scenes import NUMBERS

PYTHON = os.environ.get("PLLAVA_LMMS_EVAL_PYTHON")
CLIPS = 48
TASK = "mvbench_moving_direction"
VIDEOS = "clevrer/video_validation"  # the task's folder of videos
WHERE = "import importlib.util as u; print(*u.find_spec('lmms_eval').submodule_search_locations)"
# nano knows only its own questions, and answers in words: the same task with these questions as prompts, and with
# lmms-eval's own filter, which finds the letter of the option. The scoring stays the task's.
OWN_WORDS = """
include: {task}
task: own_words
doc_to_text: question
filter_list:
  - name: letters
    filter:
      - function: multi_choice_regex
      - function: take_first
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON,
        reason="PLLAVA_LMMS_EVAL_PYTHON is not set: a Python with lmms-eval (from 0.7.3) and this package installed",
    ),
]


def options_of(row: dict[str, str]) -> list[str]:
    """Return the options of a question; nano is not always right about the last two types."""
    if row["type"] == "direction":
        return ["left", "right"] if "left" in row["question"] else ["up", "down"]
    return list(NUMBERS) if row["type"] == "bounces" else row["question"].rstrip("?").split(", ")[1].split(" or ")


# The task's clips are in a branch
MAKE_BRANCH = """
from huggingface_hub import HfApi

HfApi().create_branch("OpenGVLab/MVBench", branch="video", repo_type="dataset")
"""


def make_hub(folder: Path) -> list[list[str]]:
    """Write questions about nano's clips as MVBench on the Hub; return the options of each question."""
    rng = random.Random(0)
    repository = folder / "datasets" / "OpenGVLab" / "MVBench"
    (repository / VIDEOS).parent.mkdir(parents=True)
    rows = []
    for row in map(json.loads, render(folder / "world", CLIPS, seed=1).read_text().splitlines()):
        if row["type"] in ("direction", "bounces", "order"):
            known = {"video": Path(row["video"]).name, "question": row["question"], "answer": row["answer"]}
            options = options_of(row)
            rng.shuffle(options)
            rows.append({**known, "candidates": options, "choices": options})  # the filter looks for "choices"
    (folder / "world" / "clips").rename(repository / VIDEOS)
    (repository / "json").mkdir()
    (repository / "json" / "moving_direction.json").write_text(json.dumps(rows))
    files = [{"split": "train", "path": "json/*.json"}]
    configs = [{"config_name": "moving_direction", "data_files": files}]
    (repository / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return [row["candidates"] for row in rows]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The options of each question, the results, and the samples of the original task and of `own_words`."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    options = make_hub(folder / "hub")
    (folder / "tasks").mkdir()
    location = subprocess.run([PYTHON, "-c", WHERE], capture_output=True, text=True, check=True).stdout.strip()
    own = OWN_WORDS.format(task=Path(location, "tasks", "mvbench", f"{TASK}.yaml"))
    (folder / "tasks" / "own_words.yaml").write_text(own)
    command = [PYTHON, "-m", "lmms_eval", "--model", "pllava", "--model_args", f"pretrained={NANO},dtype=float32"]
    command += ["--tasks", f"{TASK},own_words", "--include_path", folder / "tasks", "--batch_size", "8"]
    command += ["--device", "cpu", "--log_samples", "--output_path", folder / "out"]
    command += ["--reasoning_tags", "none"]  # the samples then have the answers, not only their letters
    with local_hub(folder / "hub") as address:
        run_online(address, folder, "-c", MAKE_BRANCH)
        local = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "local"}
        run = subprocess.run(
            command, cwd=folder, env={**os.environ, **local}, capture_output=True, text=True, timeout=900
        )
    results = list((folder / "out").rglob("*_results.json"))
    assert results, run.stdout[-3000:] + run.stderr[-3000:]  # lmms-eval returns 0 when it fails, too
    samples = {
        task: [json.loads(line) for path in (folder / "out").rglob(f"*_samples_{task}.jsonl") for line in path.open()]
        for task in (TASK, "own_words")
    }
    return options, json.loads(results[0].read_text())["results"], samples


def test_every_request_is_answered(evaluated):
    options, _, samples = evaluated
    for rows in samples.values():
        assert [row["doc_id"] for row in rows] == list(range(len(options)))
        assert all(row["mvbench_accuracy"]["pred_answer"] for row in rows)


def test_score_agrees_with_our_rule(evaluated):
    options, results, samples = evaluated
    right = [
        option_named(row["resps"][0], offered) == offered.index(row["target"])
        for row, offered in zip(samples["own_words"], options, strict=True)
    ]
    assert right == [row["mvbench_accuracy"]["score"] == 1 for row in samples["own_words"]]
    score = results["own_words"]["mvbench_accuracy,letters"]
    assert score == pytest.approx(100 * sum(right) / len(right))
    assert score > 80  # a guess is right in less than 50 per cent


def test_original_task_agrees_with_our_rule_if_an_option_is_named(evaluated):
    """Otherwise the task takes the first letter of a sentence for an option, and the rules differ."""
    options, _, samples = evaluated
    named = [
        (index == offered.index(row["target"]), row["mvbench_accuracy"]["score"] == 1)
        for row, offered in zip(samples[TASK], options, strict=True)
        if (index := option_named(row["filtered_resps"][0], offered)) is not None
    ]
    assert len(named) > len(options) / 2
    assert all(ours == theirs for ours, theirs in named)
