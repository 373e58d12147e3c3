"""Reading benchmarks: declarations, file layouts, archives, datasets on the Hub, and custom benchmarks."""

import hashlib
import json
import multiprocessing
import os
import re
import time
import zipfile
from pathlib import Path

import benchmark_folders
import forked
import pytest
import yaml
from benchmark_folders import Clips, benchmark, lines, write_json, write_mvbench
from local_hub import local_hub
from transformers import AutoProcessor
from typer.testing import CliRunner

import pllava
from pllava.eval import LocalModel, evaluate, load_benchmark, load_benchmarks, load_prompts, read_samples
from pllava.eval.benchmarks import data_folder
from pllava.eval.benchmarks.data_folder import find_folder, find_video
from pllava.files import to_lines
from pllava_cli import app


@pytest.fixture(scope="module")
def model():
    return LocalModel(pllava.load_model(pllava.NANO), AutoProcessor.from_pretrained(pllava.NANO), num_workers=0)


def test_dataset_on_the_hub_is_downloaded_and_unpacked(tmp_path):
    repository = tmp_path / "hub" / "datasets" / "someone" / "videoqa"
    source = benchmark_folders.write_videoqa(tmp_path, "msvd_qa")
    repository.mkdir(parents=True)
    for name in ("test_q.json", "test_a.json"):
        (repository / name).write_text((source / name).read_text())
    with zipfile.ZipFile(repository / "videos.zip", "w") as archive:
        for clip in (source / "videos").iterdir():
            archive.write(clip, f"videos/{clip.name}")
    program = (
        "from benchmark_folders import benchmark\nfrom pllava.eval import read_samples\n"
        "for _ in range(2): print(*(s.video for s in read_samples(benchmark('msvd_qa'), 'someone/videoqa')))"
    )
    with local_hub(tmp_path / "hub") as address:
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        finished = forked.run("-c", program, **environment)
    assert finished.returncode == 0, finished.stderr
    videos = finished.stdout.split()
    assert len(videos) == 8 and all(Path(video).is_file() for video in videos)


def _put_clip_hashes(delay, queue):
    """Hash the clips that a process sees after `find_folder`."""
    time.sleep(delay)
    clips = sorted((find_folder("someone/data", "") / "clips").iterdir())
    queue.put([hashlib.sha256(clip.read_bytes()).hexdigest() for clip in clips])


def test_processes_that_share_an_archive_see_whole_clips(tmp_path, monkeypatch):
    """One process unpacks, the others wait; what a killed process left is unpacked again."""
    contents = [os.urandom(40_000) for _ in range(150)]
    for part in (0, 1):  # both archives have files of the same folder
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for number in range(part, len(contents), 2):
                archive.writestr(f"clips/{number:03}.mp4", contents[number])
    (tmp_path / "0.zip.partial" / "clips").mkdir(parents=True)
    (tmp_path / "0.zip.partial" / "clips" / "000.mp4").write_bytes(b"half")
    monkeypatch.setattr(data_folder, "fetch", lambda name, repo_type: tmp_path)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_put_clip_hashes, args=(0.02 * number, queue)) for number in range(5)]
    for process in processes:
        process.start()
    expected = [hashlib.sha256(content).hexdigest() for content in contents]
    assert [queue.get(timeout=60) == expected for _ in processes] == [True] * len(processes)
    for process in processes:
        process.join()
    assert not list(tmp_path.glob("*.partial"))


def test_archive_in_an_archive_is_unpacked(tmp_path, monkeypatch):
    """The temporary folder of another process is ignored."""
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as archive:
        archive.writestr("a.mp4", b"clip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("README", b"Clips")
        archive.write(tmp_path / "inner.zip", "clips/inner.zip")
    (tmp_path / "outer.zip.partial").mkdir()
    (tmp_path / "inner.zip").rename(tmp_path / "outer.zip.partial" / "other.zip")
    monkeypatch.setattr(data_folder, "fetch", lambda name, repo_type: tmp_path)
    for _ in range(2):
        assert (find_folder("someone/data", "") / "clips" / "a.mp4").read_bytes() == b"clip"
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("other*"))


def test_find_video_completes_the_suffix(tmp_path):
    for name in ("a.gif", "a.mp4", "v_b.webm", "c.txt"):
        (tmp_path / name).touch()
    assert find_video(tmp_path, "a") == str(tmp_path / "a.mp4")
    assert find_video(tmp_path, "a.gif") == str(tmp_path / "a.gif")
    assert find_video(tmp_path, "b", "v_b") == str(tmp_path / "v_b.webm")
    assert find_video(tmp_path, "c", "v_c") == str(tmp_path / "c")  # missing: reported later as unreadable


def test_clips_are_found_in_any_folder(tmp_path):
    """TGIF-QA's clips are in a folder with another name than in the original."""
    root = benchmark_folders.write_videoqa(tmp_path, "tgif_qa")
    (root / "videos_mp4").rename(root / "gifs")
    assert all(Path(sample.video).is_file() for sample in read_samples(benchmark("tgif_qa"), str(tmp_path)))
    assert all(Path(sample.video).is_file() for sample in read_samples(benchmark("tgif_qa"), str(root)))


def test_examples_in_the_readme(model, tmp_path):
    page = (Path(pllava.__file__).parent / "eval" / "benchmarks" / "README.md").read_text()
    declaration, functions = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("yaml", "python"))
    Clips(tmp_path / "made").write(tmp_path / "clips" / "a.mp4", 0)
    (tmp_path / "sports.yaml").write_text(declaration)
    row = {"video": "a.mp4", "question": "What?", "answer": "one", "options": ["two", "one"], "start": 0.5, "end": 2}
    (tmp_path / "questions.jsonl").write_text(to_lines([{**row, "type": "easy"}, row]))
    declared = load_benchmark(str(tmp_path / "sports.yaml"), load_prompts())
    (found,) = evaluate(declared, model, str(tmp_path), tmp_path / "out").values()
    assert found["coverage"] == 1 and found["per_task"].keys() == {"easy", "all"}
    (tmp_path / "sports.py").write_text(functions)
    (tmp_path / "other.yaml").write_text(
        declaration.replace("rows ", "sports.py:read ").replace("multiple_choice ", "sports.py:score ")
    )
    (tmp_path / "list.txt").write_text("clips/a.mp4\tHow many shapes are there in all?\tt\n")
    declared = load_benchmark(str(tmp_path / "other.yaml"), load_prompts())
    (found,) = evaluate(declared, model, str(tmp_path), tmp_path / "out").values()
    assert found["accuracy"] in (0, 1) and found["per_task"].keys() == {"sports"}


def test_custom_reader_and_rule(model, tmp_path):
    Clips(tmp_path / "made").write(tmp_path / "clips" / "1.mp4", 0)
    (tmp_path / "list.txt").write_text("1.mp4\tHow many shapes are there in all?\n")
    (tmp_path / "mine.yaml").write_text(
        "title: My clips\nread: mine.py:read\nscore: mine.py:score\ntasks: {counting: {file: list.txt}}\n"
    )
    (tmp_path / "mine.py").write_text(
        "from pllava.eval import Sample\n\n\n"
        "def read(root, benchmark):\n"
        "    for line in (root / benchmark.tasks['counting']['file']).read_text().splitlines():\n"
        "        video, question = line.split('\\t')\n"
        "        yield Sample(video, 'counting', str(root / 'clips' / video), (question,))\n\n\n"
        "def score(sample, answer):\n"
        "    return 5.0 if answer in ('one', 'two', 'three') else 0.0\n"
    )
    (declared,) = load_benchmarks(str(tmp_path / "mine.yaml"), load_prompts())
    (found,) = evaluate(declared, model, str(tmp_path), tmp_path / "out").values()
    assert (found["score"], found["coverage"]) == (5.0, 1.0)
    assert lines(tmp_path / "out" / "mine")[0]["score"] == 5.0


def test_custom_score_counts_broken_clips_as_zero(model, tmp_path):
    Clips(tmp_path / "made").write(tmp_path / "a.mp4", 0)
    row = {"question": "What?", "answer": "one"}
    (tmp_path / "questions.jsonl").write_text(to_lines([{**row, "video": "a.mp4"}, {**row, "video": "gone.mp4"}]))
    (tmp_path / "mine.yaml").write_text(
        "title: Mine\nread: rows\nscore: mine.py:score\ntasks: {all: {file: questions.jsonl}}\n"
    )
    (tmp_path / "mine.py").write_text("def score(sample, answer):\n    return 4.0\n")
    (found,) = evaluate(load_benchmark(str(tmp_path / "mine.yaml"), {}), model, str(tmp_path), tmp_path).values()
    assert (found["score"], found["coverage"]) == (2.0, 0.5) and "accuracy" not in found
    (tmp_path / "mine.py").write_text("def score(sample, answer):\n    return 'good'\n")
    with pytest.raises(ValueError, match="gives a str, not a bool or a number"):
        evaluate(load_benchmark(str(tmp_path / "mine.yaml"), {}), model, str(tmp_path), tmp_path / "other")


def test_answer_that_is_not_an_option_is_an_error(tmp_path):
    write_mvbench(tmp_path, per_task=1)
    file = tmp_path / "MVBench" / "json" / "action_count.json"
    write_json(file, [{**row, "answer": "something else"} for row in json.loads(file.read_text())])
    with pytest.raises(ValueError, match="MVBench, Action Count/0: the answer 'something else' is not among"):
        read_samples(benchmark("mvbench"), str(tmp_path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("title: x\nread: rows\nscore: exact\n", "'tasks'"),
        ("title: x\nread: rows\nscore: exact\ntasks: {}\ncolour: red\n", "'colour'"),
        ("title: x\nread: nothing\nscore: exact\ntasks: {}\n", "'nothing' is neither"),
        ("title: x\nread: gone.py:read\nscore: exact\ntasks: {}\n", "gone.py"),
        ("title: x\nread: rows\nscore: judge\ntasks: {a: {file: x, judge: [answer]}, b: {file: x}}\n", "task 'b'"),
        ("title: x\nread: rows\nscore: judge\ntasks: {a: {file: x, judge: [humour]}}\n", "humour"),
        ("title: x\nread: rows\nscore: judge\ntasks: {a: {file: x, judge: 5}}\n", "got 5"),
        ("title: x\nread: rows\nscore: judge\ntasks: {a: }\n", "`tasks` must map names to mappings"),
        ("title: x\nread: rows\nscore: exact\ntasks: {a: }\n", "`tasks` must map names to mappings"),
        ("title: x\nread: rows\nscore: exact\ntasks: [a]\n", r"`tasks` must map names to mappings.*; got \['a'\]"),
        ("title: x\nread: rows\nscore: exact\ntasks: {a: {media: clips}}\n", r"the path of \['file'\] for task 'a'"),
        (
            "title: x\nread: videoqa\nscore: exact\ntasks: {a: {questions: 5}}\n",
            r"\['answers', 'questions'\] for task",
        ),
        ("title: x\nread: rows\nscore: exact\ntasks: {a: {file: x, media: }}\n", r"the path of \['media'\]"),
        ("title: [\n", r"mine\.yaml is not valid YAML: .* line 2"),
        ("", r"mine\.yaml is not a YAML mapping"),
        ("title: x\n5: x\n", "missing or unknown"),
    ],
)
def test_invalid_declaration_is_an_error(tmp_path, text, problem):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_samples(load_benchmark(str(tmp_path / "mine.yaml"), {}), str(tmp_path))


def test_undeclared_task_is_judged_like_the_declared_ones(tmp_path):
    (tmp_path / "a.mp4").touch()
    row = {"video": "a.mp4", "question": "What?", "answer": "x", "type": "easy"}
    (tmp_path / "rows.jsonl").write_text(to_lines([row]))
    tasks = {"all": {"file": "rows.jsonl", "judge": ["answer"]}, "more": {"file": "rows.jsonl", "judge": ["answer"]}}
    mine = {"title": "x", "read": "rows", "score": "judge", "tasks": tasks}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**mine, "tasks": {"all": tasks["all"]}}))
    (sample,) = read_samples(load_benchmark(str(file), {}), str(tmp_path))
    assert load_benchmark(str(file), {}).aspects(sample.task) == ["answer"]
    tasks["more"]["judge"] = ["detail"]
    file.write_text(yaml.safe_dump(mine))
    with pytest.raises(ValueError, match="which aspects of task 'easy' are judged"):
        read_samples(load_benchmark(str(file), {}), str(tmp_path))


def test_wrong_clip_folder_stops_the_run_before_the_model_is_loaded(tmp_path):
    benchmark_folders.write_videoqa(tmp_path, "msvd_qa")
    (tmp_path / "VideoQA" / "MSVD_Zero_Shot_QA" / "videos").rename(tmp_path / "elsewhere")
    arguments = ["--benchmark", "msvd_qa", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    finished = CliRunner().invoke(app, ["eval", "no/such/model", *arguments])
    assert finished.exit_code == 1 and not (tmp_path / "out").exists()
    assert "4 of its 4 clips are missing" in finished.stderr
    assert str(tmp_path / "VideoQA" / "MSVD_Zero_Shot_QA") in finished.stderr


def test_invalid_line_is_reported_with_its_number(tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"video": "a.mp4", "question": "?", "answer": "x"}\n{oh\n')
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 2 is not valid JSON"):
        read_samples(benchmark("nano"), str(tmp_path))
    (tmp_path / "questions.jsonl").write_text('{"video": "a.mp4", "question": "?"}\n')
    with pytest.raises(ValueError, match=r"questions\.jsonl, line 1 lacks 'answer'"):
        read_samples(benchmark("nano"), str(tmp_path))


def test_missing_benchmark_or_files_are_reported_without_traceback(tmp_path):
    with pytest.raises(ValueError, match="no such benchmark; there are activitynet_qa, inter4k, .*mvbench"):
        load_benchmark("mvbanch", {})
    with pytest.raises(ValueError, match=r"action_sequence.json cannot be read"):
        read_samples(benchmark("mvbench"), str(tmp_path))
    write_json(tmp_path / "test_q.json", [{"question_id": 1, "video_name": "a", "question": "?"}])
    write_json(tmp_path / "test_a.json", [{"question_id": 2, "answer": "x"}])
    with pytest.raises(ValueError, match="has no answer to question 1"):
        read_samples(benchmark("msvd_qa"), str(tmp_path))
    out = str(tmp_path / "out")
    finished = CliRunner().invoke(
        app, ["eval", "nano", "--benchmark", "msvd_qa", "--data", str(tmp_path), "--out", out]
    )
    assert finished.exit_code == 1
    assert finished.stderr.strip().splitlines()[-1].startswith("Error: ") and "Traceback" not in finished.stderr
