"""`pllava data`: inspection finds the problems that training finds, and published data can be trained on."""

import json
import os
import tarfile
import time
import tracemalloc
from pathlib import Path

import datasets
import forked
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_hub import local_hub
from PIL import Image
from typer.testing import CliRunner
from video_files import moving_frames, white_png, write_video

from pllava.data import inspection
from pllava.data.inspection import format_problem, inspect_source
from pllava.data.inspection_report import format_reports
from pllava.data.publishing.parquet_files import write_shards
from pllava.data.publishing.training_data import Split, row_groups, usable_rows
from pllava.data.row_formats import FEATURES
from pllava.data.sources import Source, load_source
from pllava.train.loader.collator import VideoChatCollator
from pllava.train.loader.skipped import Skipped, SkippedExamples, read_skipped
from pllava.video_decoding_pllava import load_frames
from pllava_cli import app

BAD = {  # names of broken files, and a part of the error
    "missing.mp4": "no such file",
    "empty.mp4": "empty",
    "text.mp4": "no video",
    "cut_index_in_front.mp4": "ends early",
    "cut_index_at_end.mp4": "no video",
    "zeros.mp4": "ends early",
    "large.mp4": "more than 50,000,000 pixels",
    "thin.mp4": "one side is more than 32 times the other",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def media(clips, tmp_path_factory):
    """A folder with the clips, an image, and the broken files but the missing one."""
    folder = tmp_path_factory.mktemp("media")
    for clip in clips:
        (folder / clip.name).symlink_to(clip)
    Image.new("RGB", (60, 50), "red").save(folder / "red.png")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    (folder / "large.mp4").write_bytes(white_png(16000, 16000))
    (folder / "thin.mp4").write_bytes(white_png(1, 65535))
    frames = moving_frames(60)
    front = write_video(folder / "front.mp4", frames, 10, container_options={"movflags": "faststart"}).read_bytes()
    end = write_video(folder / "end.mp4", frames, 10).read_bytes()
    (folder / "cut_index_in_front.mp4").write_bytes(front[: len(front) * 9 // 10])
    (folder / "cut_index_at_end.mp4").write_bytes(end[: len(end) * 9 // 10])
    (folder / "zeros.mp4").write_bytes(front[: len(front) // 2].ljust(len(front), b"\0"))
    return folder


def asked(video, question="What happens?", **more):
    turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": f"It is {question.lower()}"}]
    return {"video": video, "conversations": turns, **more}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*command, **environment):
    result = forked.run(*command, **environment)
    assert "Traceback" not in result.stderr, result.stderr
    return result


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspection_measures_clips_and_counts_the_collator_s_tokens(processor, media, tmp_path):
    rows = [
        asked("0.mp4"),
        asked("1.mp4", "What happens? " * 9),
        asked("2.mp4", start=1.0, end=2.4),
        asked("0.mp4", "Again?"),  # the same clip: counted once
        {"image": "red.png", "conversations": asked(None, "What colour?")["conversations"]},
        {"messages": [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Ho")) * 3]},
    ]
    rows[4]["conversations"][0]["value"] = "<image>\nWhat colour?"
    source = Source(str(write_rows(tmp_path / "rows.jsonl", rows)), str(media))
    report = inspect_source(source, processor, workers=2)
    summary = report.summary()
    names = ("samples", "clips", "images", "missing", "unreadable", "skipped")
    assert [summary[name] for name in names] == [6, 3, 1, 0, 0, 0]
    assert sorted(report.values("frames")) == [15, 20, 30]  # 10 to 24, both of them drawn
    assert sorted(report.values("seconds")) == pytest.approx([1.5, 2, 3])
    collator = VideoChatCollator(processor)
    lengths = [len(collator.encode(row)["input_ids"]) for row in load_source(source)]
    assert report.tokens == lengths and len(set(lengths)) > 3
    assert summary["turns"] == {"min": 1, "median": 1, "p95": 2.5, "max": 3}
    assert summary["frames"] == {"min": 15, "median": 20, "p95": 29, "max": 30}
    assert format_reports([report]).splitlines()[1].split() == ["rows", "6", "0", "0", "3", "1", "0", "0"]


@pytest.mark.parametrize("workers", [0, 2])
def test_inspection_reports_the_rows_that_the_collator_skips(processor, media, tmp_path, workers):
    (media / "frames").mkdir(exist_ok=True)
    Image.new("RGB", (60, 50)).save(media / "frames" / "1.png")
    names = [*BAD, "0.mp4", "frames", "front.mp4", "end.mp4"]
    rows = [asked(name) for name in names]
    rows += [asked("1.mp4", start=2, end=1), asked("1.mp4", start=100, end=120)]
    rows += [{"image": name, "caption": "Red."} for name in ("red.png", "text.mp4", "missing.png")]
    source = Source(str(write_rows(tmp_path / "rows.jsonl", rows)), str(media))
    report = inspect_source(source, processor, workers)
    results = [VideoChatCollator(processor).try_encode(row, seed=0) for row in load_source(source)]
    skipped = [result.id for result in results if isinstance(result, Skipped)]
    assert [problem.id for problem in report.problems] == skipped
    assert len(skipped) == len(BAD) + 4
    assert report.summary()["missing"] == 2 and report.summary()["unreadable"] == len(BAD) - 1 + 3


def test_inspection_of_a_webdataset_with_preferences(processor, clips, tmp_path):
    answers = {"chosen": "A much longer answer than the other.", "rejected": "No."}
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, clip in enumerate(clips):
            note = write_rows(tmp_path / "note.json", [{"prompt": "What happens?", **answers}])
            tar.add(clip, f"{number}.mp4")
            tar.add(note, f"{number}.json")
        tar.add(note, "broken.json")
        (tmp_path / "broken").write_bytes(clips[0].read_bytes()[:999])
        tar.add(tmp_path / "broken", "broken.mp4")
    report = inspect_source(Source(str(tmp_path / "shard.tar")), processor, workers=0)
    assert sorted(report.values("frames")) == [20, 30, 40] and report.turns == [1] * 4
    assert [problem.id.split("/")[-1] for problem in report.problems] == ["broken"]
    assert report.summary()["unreadable"] == 1
    row = next(iter(load_source(Source(str(tmp_path / "shard.tar")))))
    longest = {**row, "messages": row["messages"] + row["chosen"]}
    assert set(report.tokens) == {len(VideoChatCollator(processor).encode(longest)["input_ids"])}


def test_inspect_command_lists_bad_clips_and_writes_reports(media, tmp_path):
    good = write_rows(tmp_path / "good.jsonl", [asked("0.mp4"), asked("2.mp4")])
    rows = [*map(asked, (*BAD, "missing.mp4", "1.mp4")), {"video": "1.mp4", "answer": ""}]
    bad = write_rows(tmp_path / "bad.jsonl", rows)
    listed = [{"path": "good.jsonl", "name": "fine", "media": str(media)}]
    (tmp_path / "sources.yaml").write_text(json.dumps(listed))
    command = ["pllava", "data", "inspect", tmp_path / "sources.yaml", "--media", tmp_path]
    whole = run(*command, "--workers", 1, HF_HOME=str(tmp_path / "home"))
    assert whole.returncode == 0, whole.stderr
    assert good.exists() and whole.stdout.splitlines()[2].split() == ["fine", "2", "0", "0", "2", "0", "0", "0"]

    command = ["pllava", "data", "inspect", good, bad, "--media", media, "--out", tmp_path / "out"]
    result = run(*command, HF_HOME=str(tmp_path / "home"))
    assert result.returncode == 1, result.stderr
    counts = f"1 missing, {len(BAD) - 1} unreadable, 1 malformed: training would pass over {len(BAD) + 2} of"
    assert f"{counts} {len(rows) + 2} samples" in result.stdout
    *lines, last = [json.loads(line) for line in (tmp_path / "out" / "unreadable.jsonl").read_text().splitlines()]
    reason = f"{bad}, line {len(rows)}: `answer` is empty: there is nothing to learn"
    identity = f"bad.jsonl#{len(rows) - 1}"
    assert last == {"source": "bad", "id": identity, "media": None, "reason": reason}
    assert f"bad {identity}: {reason}" in result.stdout.splitlines()
    assert [Path(line["media"]).name for line in lines] == [*BAD, "missing.mp4"]
    for number, line in enumerate(lines):
        assert (line["source"], line["id"]) == ("bad", f"bad.jsonl#{number}")
        assert BAD[Path(line["media"]).name] in line["reason"]
        assert any(line["id"] in printed and line["media"] in printed for printed in result.stdout.splitlines())
    figures = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert figures["model"] == "nano" and [source["source"] for source in figures["sources"]] == ["good", "bad"]
    assert figures["sources"][0]["seconds"] == {"min": 2, "median": 3, "p95": 3.9, "max": 4}
    assert figures["sources"][1]["frames"]["max"] == 30
    with Image.open(tmp_path / "out" / "inspection.png") as picture:
        assert picture.width > picture.height > 300  # a row for each source


def test_inspect_command_lists_template_errors_and_reports_a_missing_file(media, tmp_path):
    path = tmp_path / "rows.jsonl"
    command = ["data", "inspect", str(path), "--media", str(media), "--workers", "0"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "no such file" in result.stderr
    answer = {"role": "assistant", "content": "It is."}
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, answer]}
    write_rows(path, [chat, asked("0.mp4")])
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, SystemExit), result.exception
    assert "rows rows.jsonl#0: the chat template does not accept it" in result.stdout
    assert result.exit_code == 1 and "training would pass over 1 of 2 samples" in result.stdout


URLS = [  # with secrets, and their public names
    ("http://bob:hunter2@127.0.0.1:9/a.mp4?X-Sig=hunter3", "http://127.0.0.1:9/a.mp4?..."),
    ("http://bob:hunter2@[::1/a.mp4?X-Sig=hunter3", "http://[::1/a.mp4?..."),
    ("s3://bob:hunter2@clips/a.mp4?X-Sig=hunter3", "s3://clips/a.mp4?..."),
    ("data:video/mp4;base64," + "A" * 9000, "data:video/mp4;base64," + "A" * 18 + "..."),
]


def test_problems_name_urls_without_their_secrets(processor, tmp_path, monkeypatch):
    monkeypatch.setattr("pllava.workers.RETRY_DELAYS", ())
    source = Source(str(write_rows(tmp_path / "rows.jsonl", [asked(address) for address, _ in URLS])))
    report = inspect_source(source, processor, workers=0)
    skipped = SkippedExamples(tmp_path / "_skipped.jsonl")
    for row in load_source(source):
        skipped.count(VideoChatCollator(processor).try_encode(row))
    listed = read_skipped(tmp_path / "_skipped.jsonl")
    names = [name for _, name in URLS]
    assert [problem.media for problem in report.problems] == [row.media[0] for row in listed] == names
    lines = [format_problem("rows", problem) for problem in report.problems]
    lines += [str(row) for row in listed] + [skipped._advice()]
    assert not [line for line in lines if "bob" in line or "hunter" in line or "A" * 50 in line]


ODD_PATHS = ["file://[::1/a.mp4", "a" * 5000 + ".mp4", "a\0b.mp4", "http://[::1"]  # paths that no file can have


def test_odd_paths_are_problems_of_their_rows(processor, media, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*map(asked, ODD_PATHS), asked("0.mp4")])
    source, lines = Source(str(path), str(media)), []
    report = inspect_source(source, processor, workers=0)
    for number, (problem, name) in enumerate(zip(report.problems, ODD_PATHS, strict=True)):
        assert problem.id == f"rows.jsonl#{number}" and problem.media.endswith(name)
        assert problem.reason.startswith("Cannot d") and problem.media in problem.reason
    kept = usable_rows(source, 0, Split("rows", None, []), lines.append)
    assert [row["id"] for row in kept] == ["rows.jsonl#4"] and len(lines) == len(ODD_PATHS)
    results = [VideoChatCollator(processor).try_encode(row) for row in load_source(source)]
    assert [result.id for result in results if isinstance(result, Skipped)] == [item.id for item in report.problems]
    with pytest.raises(RuntimeError, match="in a row could not be read. The last one: rows rows.jsonl#0 file://"):
        skipped = SkippedExamples()
        while True:
            skipped.count(results[0])


def test_embedded_bytes_may_have_any_name(processor, clips, tmp_path):
    row = {"video": {"bytes": clips[0].read_bytes(), "path": ODD_PATHS[1]}, "caption": "A bar."}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    source = Source(str(tmp_path / "rows.parquet"))
    (kept,) = usable_rows(source, 0, Split("rows", None, []), print)
    assert kept["videos"][0]["bytes"] == clips[0].read_bytes()


def test_clips_that_crash_or_block_a_worker_are_problems_of_their_rows(processor, media, tmp_path, monkeypatch):
    def load(content, sampler):
        if "1.mp4" in content:
            os._exit(9)  # like a decoder that crashes
        if "2.mp4" in content:
            time.sleep(600)
        return load_frames(content, sampler)

    monkeypatch.setattr(inspection, "load_frames", load)
    monkeypatch.setattr(inspection, "DECODE_TIMEOUT", 5)
    rows = [asked("0.mp4"), asked("1.mp4"), asked("2.mp4"), asked("front.mp4"), asked("1.mp4", "Again?")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    report = inspect_source(Source(str(path), str(media)), processor, workers=2)
    reasons = [(problem.id, problem.reason) for problem in report.problems]
    crashed, too_long = "the worker ended (9)", "it took more than 5 seconds, and was given up"
    assert reasons == [("rows.jsonl#1", crashed), ("rows.jsonl#2", too_long), ("rows.jsonl#4", crashed)]
    assert report.summary()["unreadable"] == 2 and len(report.tokens) == 5
    assert sorted(report.values("frames")) == [20, 60]


# --- push ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of a local Hub, and the environment of a process that uses it."""
    folder = tmp_path_factory.mktemp("hub")
    with local_hub(folder) as address:
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        yield folder / "datasets", {**environment, "HF_HOME": str(tmp_path_factory.mktemp("home"))}


READ_BACK = """
import sys
import numpy as np
import torch
from transformers import AutoProcessor
import pllava
from pllava.train.loader.collator import VideoChatCollator
from pllava.data.sources import Source, load_source
from pllava.data.mixture import Shards, load_sources

path, media, repo_id, kept = sys.argv[1:]
collator = VideoChatCollator(AutoProcessor.from_pretrained(pllava.NANO))
here = [row for row in load_source(Source(path, media)) if row["id"] in kept.split(",")]
there = sorted(load_source(Source(repo_id)), key=lambda row: row["id"])
mixture = load_sources([Source(repo_id)])  # as training reads it, row by row
assert isinstance(mixture.parts[0], Shards)
assert sorted(map(mixture.read, mixture.epoch(0, seed=0)), key=lambda row: row["id"]) == there
assert [row["id"] for row in there] == kept.split(","), [row["id"] for row in there]
for mine, pushed in zip(here, there, strict=True):
    assert {key: mine[key] for key in ("messages", "source")} == {key: pushed[key] for key in ("messages", "source")}
    assert all(item["bytes"] and "/" not in item["path"] for item in pushed["videos"] + pushed["images"])
    first, second = collator.encode(mine, seed=1), collator.encode(pushed, seed=1)
    for name in ("input_ids", "labels"):
        assert np.array_equal(first[name], second[name])
    for name in ("pixel_values_videos", "pixel_values"):
        assert len(first[name]) == len(second[name])
        assert all(map(torch.equal, first[name], second[name]))
    print(pushed["id"], len(first["pixel_values_videos"]), len(first["pixel_values"]))
"""


def test_published_rows_give_the_same_training_examples(hub, media, tmp_path):
    folder, environment = hub
    rows = [asked("0.mp4"), asked("cut_index_in_front.mp4"), asked("1.mp4", start=0.5, end=1.5), asked("missing.mp4")]
    rows += [{"image": "red.png", "video": "2.mp4", "caption": "Red."}, asked("missing.mp4", "Again?")]
    rows += [{"video": "0.mp4", "caption": ""}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    # Two of the clips take about 25 KB, and other two 28: an encoder's sizes differ a little from run to run
    options = ["--media", media, "--max-shard-size", "27KB", "--license", "CC-BY-4.0"]
    result = run("pllava", "data", "push", path, "me/clips", *options, **environment)
    assert result.returncode == 0, result.stderr
    assert "3 samples with 3 clips and 1 images" in result.stdout
    assert "4 samples were left out, for 2 clips or images and 1 malformed rows" in result.stdout
    left_out = [line for line in result.stdout.splitlines() if line.startswith("left out:")]
    names = ["cut_index_in_front.mp4", "missing.mp4", "missing.mp4", "line 7: `caption` is empty"]
    assert all(name in line for name, line in zip(names, sorted(left_out), strict=True)), left_out
    files = sorted((folder / "me" / "clips" / "data").iterdir())
    assert [file.name for file in files] == ["train-00000.parquet", "train-00001.parquet"]
    assert pq.read_schema(files[0]).names == ["messages", "videos", "images", "source", "id"]
    card = (folder / "me" / "clips" / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "datasets: [{path: me/clips}]" in card
    assert "| train | rows | 3 | 3 | 1 |" in card
    assert "4 samples, since 2 of their clips" in card and "and 1 rows were malformed" in card
    assert str(media) not in card + (folder / "me" / "clips" / "splits.json").read_text()

    kept = ",".join(f"rows.jsonl#{number}" for number in (0, 2, 4))
    read = run("-c", READ_BACK, path, media, "me/clips", kept, **environment)
    assert read.returncode == 0, read.stderr
    assert [line.split()[1:] for line in read.stdout.splitlines()] == [["1", "0"], ["1", "0"], ["1", "1"]]


PUSH = """
import sys
from pllava.data.sources import Source
from pllava.data.publishing import publish

path, media, preferences = sys.argv[1:]
print(publish(Source(path, media), "me/splits", max_shard_size="9KB").shards)
print(publish(Source(path, media, license="Ask the owner"), "me/splits", split="test").shards)
print(publish(Source(path, media), "me/splits").shards)
for source, repo_id, split in (
    (Source(preferences, media), "me/splits", "best"),
    (Source(preferences, media), "other/owned", "train"),
    (Source(path, "nowhere"), "me/nothing", "train"),
    (Source(path, media), "me/splits", "a-b"),
):
    try:
        publish(source, repo_id, split)
    except ValueError as error:
        print(error)
publish(Source(preferences, media), "me/preferences")
"""


def test_publish_replaces_its_split_and_keeps_other_splits_and_datasets(hub, media, tmp_path):
    folder, environment = hub
    (folder / "other" / "owned").mkdir(parents=True)
    (folder / "other" / "owned" / "README.md").write_text("Mine")
    rows = write_rows(tmp_path / "rows.jsonl", [asked("0.mp4"), asked("1.mp4"), asked("2.mp4")])
    chosen = {"video": "0.mp4", "prompt": "What?", "chosen": "A bar.", "rejected": "Nothing."}
    preferences = write_rows(tmp_path / "preferences.jsonl", [chosen])
    result = run("-c", PUSH, rows, media, preferences, **environment)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith("left out:")]
    assert lines[:3] == ["3", "1", "1"]
    errors = ("columns", "other/owned holds files", "none of its 3 samples", "'a-b'")
    assert all(word in line for word, line in zip(errors, lines[3:], strict=True)), lines
    data = sorted(file.name for file in (folder / "me" / "splits" / "data").iterdir())
    assert data == ["test-00000.parquet", "train-00000.parquet"]
    card = (folder / "me" / "splits" / "README.md").read_text()
    assert "| train | rows | 3 |" in card and "| test | rows | 3 |" in card and "license: other" in card
    assert "Ask the owner" in card and "not stated" in card
    assert [file.name for file in (folder / "other" / "owned").iterdir()] == ["README.md"]
    assert not (folder / "me" / "nothing").exists()
    table = pq.read_table(folder / "me" / "preferences" / "data" / "train-00000.parquet")
    assert table["chosen"][0].as_py()[0]["content"] == [{"type": "text", "text": "A bar."}]


def test_published_rows_have_a_fixed_random_order(tmp_path):
    rows = [{"question": f"What is {number}?", "answer": "It is."} for number in range(40)]
    source = Source(str(write_rows(tmp_path / "rows.jsonl", rows)))
    first, again = ([row["id"] for row in usable_rows(source, 0, Split("rows", None, []), print)] for _ in range(2))
    order = [int(identity.split("#")[1]) for identity in first]
    assert first == again and sorted(order) == list(range(40))
    assert min(sum(index < 20 for index in half) for half in (order[:20], order[20:])) > 5


def test_write_shards_writes_one_file_at_a_time_in_little_memory(tmp_path):
    made = 0

    def rows():
        nonlocal made
        for made in range(1, 201):
            clip = {"path": "clip.mp4", "bytes": os.urandom(10**6), "start": None, "end": None}
            yield {name: [] for name in FEATURES} | {"videos": [clip], "source": "noise", "id": str(made)}

    columns = [name for name in FEATURES if name not in ("chosen", "rejected", "error")]
    tracemalloc.start()
    before, written = pa.total_allocated_bytes(), 0
    for file in write_shards(row_groups(rows(), columns, 50_000_000), tmp_path, "train", 50_000_000):
        assert [file] == list(tmp_path.iterdir()) and file.stat().st_size < 51_000_000
        parquet = pq.ParquetFile(file)
        assert all(parquet.metadata.row_group(n).total_byte_size < 3_000_000 for n in range(parquet.num_row_groups))
        written += parquet.metadata.num_rows
        assert made - written < 40  # rows that are read ahead
        assert pa.total_allocated_bytes() - before < 100_000_000
        file.unlink()
    assert written == 200 and tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
