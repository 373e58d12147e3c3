"""Lists of videos: their formats, prompts and bounds for each row, and what is wrong with them."""

import json
import math
import shutil

import forked
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_lines import read
from chat_server import Reply, chat_server
from hub_client import online
from local_hub import local_hub
from model_inputs import TOKENS
from typer.testing import CliRunner

from pllava.caption import Clip, Failed, find_clips
from pllava.caption.captioners import decoding
from pllava.generation import Generator
from pllava_cli import app

ASKED = ("Describe the video.",)


def rows(tmp_path):
    return read(tmp_path / "out.jsonl")


def write_lines(file, *lines):
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text("".join(f"{line}\n" for line in text))
    return file


def found(place, bounds=(None, None)):
    return list(find_clips([str(place)], ASKED, bounds))


# --- formats ---------------------------------------------------------------------------------------------------------

TABLE = {
    "video": ["a.mp4", "a.mp4", "sub/b.mp4", "https://example.org/c.mp4?id=1", "https://example.org/c.mp4?id=2"],
    "prompt": ["What moves?", "Where?", None, "Why?", "Why?"],
    "start": [None, None, 1, 2, 2],
    "end": [None, None, None, 3.5, 3.5],
    "other": ["x", "y", "z", "x", "y"],
}


def write_table(file):
    """Write the same table in the format of the suffix."""
    if file.suffix == ".parquet":
        pq.write_table(pa.table(TABLE), file)
        return
    each = [dict(zip(TABLE, values, strict=True)) for values in zip(*TABLE.values(), strict=True)]
    if file.suffix == ".jsonl":
        write_lines(file, *({name: value for name, value in row.items() if value is not None} for row in each))
    else:
        cells = [["" if value is None else str(value) for value in row.values()] for row in each]
        file.write_text("\ufeff" + "\n".join(",".join(row) for row in [[*TABLE], *cells]), encoding="utf-8")


@pytest.mark.parametrize("name", ["list.jsonl", "list.csv", "list.parquet", "LIST.CSV"])
def test_formats_give_the_same_clips(tmp_path, name):
    file = tmp_path / name.lower()
    write_table(file)
    file = file.rename(tmp_path / name)
    a, b = str(tmp_path / "a.mp4"), str(tmp_path / "sub" / "b.mp4")
    assert found(file, (0.5, 2.5)) == [
        Clip(a, ("What moves?", "Where?"), 0.5, 2.5),
        Clip(b, ASKED, 1.0, None),
        Clip("https://example.org/c.mp4?id=1", ("Why?",), 2.0, 3.5),
        Clip("https://example.org/c.mp4?id=2", ("Why?",), 2.0, 3.5),
    ]


def test_nan_of_pandas_is_an_empty_cell(tmp_path):
    table = pa.table({"video": ["a.mp4", "b.mp4"], "start": [math.nan, 1.0], "prompt": [math.nan, math.nan]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert [(clip.start, clip.prompts) for clip in found(tmp_path / "list.parquet")] == [(None, ASKED), (1.0, ASKED)]


def test_parquet_may_hold_the_videos(clips, tmp_path):
    videos = [{"path": "same.mp4", "bytes": clip.read_bytes()} for clip in clips]
    pq.write_table(pa.table({"video": [*videos, {"path": str(clips[0]), "bytes": None}]}), tmp_path / "list.parquet")
    *embedded, named = found(tmp_path / "list.parquet")
    assert [clip.content for clip in embedded] == [clip.read_bytes() for clip in clips], "though their names are equal"
    assert named == Clip(str(clips[0]), ASKED)


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": "a.mp4"}, 'there is no "video"; the columns are file'),
        ({"video": ""}, 'there is no "video"'),
        ({"video": 3}, 'there is no "video"'),
        ({"video": "a.mp4", "start": "late"}, "\"start\" should be in seconds; it is 'late'"),
        ({"video": "a.mp4", "end": -1}, '"end" should be in seconds; it is -1'),
        ({"video": "a.mp4", "start": 3, "end": 2}, '"end" should be after "start"; they are 2 and 3'),
        ({"video": "a.mp4", "prompt": ["What?"]}, "\"prompt\" should be a text; it is ['What?']"),
        ("{", "it is not JSON"),
        ("[1]", "it should be an object; it is [1]"),
    ],
)
def test_wrong_row_is_named_and_stops_no_others(tmp_path, row, message):
    file = write_lines(tmp_path / "list.jsonl", {"video": "a.mp4"}, "", row, {"video": "b.mp4"})
    first, failed, last = found(file)
    assert (first.video, last.video) == (str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"))
    assert isinstance(failed, Failed) and failed.error.startswith(f"{file}, line 3: {message}")
    assert failed.row["video"] == f"{file}, line 3" and "path" not in failed.row
    first = write_lines(tmp_path / "first.jsonl", row, {"video": "b.mp4"})
    with pytest.raises(ValueError, match=r"first\.jsonl, line 1: "):
        find_clips([str(first)], ASKED)


def test_lists_that_cannot_be_read_are_an_error_before_any_work(caption, tmp_path):
    write_lines(tmp_path / "empty.jsonl")
    (tmp_path / "header.csv").write_text("video,prompt\n")
    (tmp_path / "semicolons.csv").write_text("video;prompt\na.mp4;What?\n")
    (tmp_path / "latin.csv").write_bytes("video,prompt\na.mp4,Où?\n".encode("latin-1"))
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    (tmp_path / "folder").mkdir()
    for name, message in [
        ("empty.jsonl", "empty.jsonl has no rows"),
        ("header.csv", "header.csv has no rows"),
        ("semicolons.csv", 'semicolons.csv, line 2: there is no "video"; the columns are video;prompt'),
        ("latin.csv", "latin.csv cannot be read: 'utf-8' codec"),
        ("broken.parquet", "broken.parquet cannot be read: Parquet magic bytes not found"),
        ("folder", "no videos in"),
        ("vids/*.mp4", "a pattern that matches nothing is passed on by the shell as it stands"),
        ("lists/none.jsonl", "1 of 1 places do not exist"),
        ("hf://datasets/me", "a dataset is hf://datasets/USER/NAME"),
    ]:
        place = name if name.startswith("hf:") else tmp_path / name
        refused = caption(place)
        assert refused.exit_code == 1 and message in refused.stderr, refused.stderr
        assert "Traceback" not in refused.output and not (tmp_path / "out.jsonl").exists()


def test_run_goes_on_after_wrong_rows(caption, clips, tmp_path):
    listed = [{"video": str(clips[0])}, {"clip": "b"}, {"video": "missing.mp4"}, {"video": str(clips[1]), "start": 99}]
    file = write_lines(tmp_path / "list.jsonl", *listed, {"video": str(clips[1])})
    finished = caption(file)
    assert finished.exit_code == 1 and "2 captioned, 0 done before, 3 failed" in finished.stdout
    errors = [row["error"] for row in rows(tmp_path) if "error" in row]
    assert len(errors) == 3 and any("line 2: there is no" in error for error in errors)
    assert 'failed: 1 x ...: there is no "video"; the columns are clip' in finished.stdout
    again = caption(file)
    assert "0 captioned, 2 done before, 3 failed" in again.stdout and len(rows(tmp_path)) == 5


# --- several prompts -------------------------------------------------------------------------------------------------


def test_clip_is_decoded_and_encoded_once_for_all_prompts(caption, clips, tmp_path, monkeypatch):
    decode, encode, encoded = decoding.sample_frames, Generator.encode_frames, []

    def count_decoded(*arguments):
        with (tmp_path / "decoded").open("a") as lines:  # in a worker process
            lines.write("once\n")
        return decode(*arguments)

    monkeypatch.setattr(decoding, "sample_frames", count_decoded)
    monkeypatch.setattr(Generator, "encode_frames", lambda *each: encoded.append(1) or encode(*each))
    listed = [{"video": str(clip), "prompt": prompt} for clip in clips for prompt in ("What?", "Where?", "What?")]
    file = write_lines(tmp_path / "list.jsonl", *listed)
    assert "3 captioned" in caption(file).stdout
    assert (tmp_path / "decoded").read_text().count("once") == len(encoded) == 3
    assert [(row["video"], row["prompt"]) for row in rows(tmp_path)] == [
        (str(clip), prompt) for clip in clips for prompt in ("What?", "Where?")
    ]
    # The same captions as with a prompt at a time, and a third prompt is the only one that is missing
    texts = {(row["video"], row["prompt"]): row["caption"] for row in rows(tmp_path)}
    finished = caption(*clips, "--prompt", "What?", "--prompt", "Why?", "--prompt", "Where?")
    assert "3 captioned" in finished.stdout and len(rows(tmp_path)) == 9
    (tmp_path / "out.jsonl").unlink()
    assert caption(*clips, "--prompt", "Where?").exit_code == 0
    assert all(row["caption"] == texts[row["video"], "Where?"] for row in rows(tmp_path))


# --- datasets on the Hub ---------------------------------------------------------------------------------------------

PUSH = """
import json, sys
from pathlib import Path
from datasets import Dataset, Features, Value, Video
from huggingface_hub import HfApi

clips, folder = map(Path, sys.argv[1:])
videos = [{"path": "clip.mp4", "bytes": file.read_bytes()} for file in sorted(clips.glob("?.mp4"))]
prompts = ["What moves?", None, "Where?"]
features = Features({"video": Video(), "prompt": Value("string")})
rows = [{"video": video, "prompt": prompt} for video, prompt in zip(videos, prompts, strict=True)]
Dataset.from_list(rows, features).push_to_hub("me/embedded")
for name in ("files", "names"):
    HfApi().create_repo(f"me/{name}", repo_type="dataset")
    HfApi().upload_folder(repo_id=f"me/{name}", folder_path=folder / name, repo_type="dataset")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with local_hub(tmp_path_factory.mktemp("hub")) as address:
        yield address


@pytest.fixture(scope="module")
def environment(hub, clips, tmp_path_factory):
    """Of a process that uses the local Hub, which has a dataset with videos, one of files, and one of names."""
    environment = {**online(hub, tmp_path_factory.mktemp("home")), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "files").mkdir()
    (folder / "names").mkdir()
    for clip in clips:
        shutil.copy(clip, folder / "files")
    lines = [{"file_name": clip.name, "prompt": "What moves?"} for clip in clips]
    write_lines(folder / "files" / "metadata.jsonl", *lines)
    write_lines(folder / "names" / "train.jsonl", {"video": "https://localhost/a.mp4"}, {"video": str(clips[0])})
    pushed = forked.run("-c", PUSH, str(clips[0].parent), str(folder), cwd=folder, **environment)
    assert pushed.returncode == 0, pushed.stderr
    return environment


@pytest.fixture
def caption_dataset(environment, checkpoint, tmp_path):
    def run_caption(name):
        options = ["--out", "out.jsonl", "--model", checkpoint, "--max-new-tokens", str(TOKENS)]
        return forked.run("pllava", "caption", f"hf://datasets/{name}", *options, cwd=tmp_path, **environment)

    return run_caption


def test_dataset_is_streamed(hub, caption_dataset, tmp_path):
    finished = caption_dataset("me/embedded")
    assert "3 captioned, 0 done before, 0 failed" in finished.stdout, finished.stderr
    assert [(row["video"], row["prompt"]) for row in rows(tmp_path)] == [
        ("clip.mp4", prompt) for prompt in ("What moves?", "Describe the video.", "Where?")
    ]
    # Files of the same content, of which one had this prompt
    finished = caption_dataset("me/files")
    assert "2 captioned, 1 done before, 0 failed" in finished.stdout, finished.stderr
    downloads = [seen for seen in hub.requests if seen.path.endswith("1.mp4")]
    assert "0 captioned, 3 done before, 0 failed" in caption_dataset("me/files").stdout
    assert [seen for seen in hub.requests if seen.path.endswith("1.mp4")] == downloads, "a file at a commit is known"


def test_dataset_cannot_name_files_of_this_machine(caption_dataset, clips, tmp_path):
    finished = caption_dataset("me/names")
    assert "0 captioned, 0 done before, 2 failed" in finished.stdout, finished.stderr
    fetched, local = [row["error"] for row in rows(tmp_path)]
    assert "localhost" in fetched and f"{clips[0]} is neither a file of the dataset nor an http(s) address" in local
    missing = caption_dataset("me/nothing")
    assert missing.returncode == 1 and "me/nothing" in missing.stderr and "Traceback" not in missing.stderr


def test_videos_of_a_list_are_sent_to_a_server(clips, tmp_path):
    videos = [{"path": "clip.mp4", "bytes": clip.read_bytes()} for clip in clips]
    pq.write_table(pa.table({"video": videos}), tmp_path / "list.parquet")
    with chat_server(lambda _: Reply("A bar.")) as (url, stub):
        options = [tmp_path / "list.parquet", "--out", tmp_path / "out.jsonl", "--endpoint", url, "--model", "served"]
        finished = CliRunner().invoke(app, ["caption", *map(str, options)])
    assert "3 captioned, 0 done before, 0 failed" in finished.stdout and len(stub.requests) == 3, finished.output
