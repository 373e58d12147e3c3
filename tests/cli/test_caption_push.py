"""`pllava caption --push`: captions as a dataset on the (local) Hub, which later runs extend."""

import hashlib
import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta

import forked
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from caption_lines import read
from hub_client import online
from local_hub import local_hub
from model_inputs import TOKENS
from PIL import Image
from typer.testing import CliRunner
from video_files import decode_all, moving_frames, write_video

from pllava.caption.clips import splitting
from pllava.checkpoint_files import fingerprint
from pllava.data import media
from pllava.origins import published_name
from pllava_cli import app


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with local_hub(tmp_path_factory.mktemp("hub")) as address:
        yield address


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory):
    """Of a process that uses the local Hub."""
    return {**online(hub, tmp_path_factory.mktemp("home")), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@pytest.fixture
def caption(checkpoint, tmp_path, monkeypatch):
    """Captions into `out.jsonl` in the working folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run_caption(*arguments):
        arguments = [*_options(checkpoint), *map(str, arguments)]
        return CliRunner().invoke(app, ["caption", *arguments], prog_name="pllava")

    return run_caption


@pytest.fixture
def push(environment, checkpoint, tmp_path):
    """Captions and pushes in a process that uses the local Hub."""

    def run_push(repo_id, *arguments, **others):
        arguments = [*_options(checkpoint), *arguments, "--push", repo_id]
        return forked.run("pllava", "caption", *arguments, cwd=tmp_path, **{**environment, **others})

    return run_push


def _options(checkpoint):
    return ["--out", "out.jsonl", "--model", checkpoint, "--max-new-tokens", str(TOKENS)]


@pytest.fixture
def python(environment, tmp_path):
    """Runs code in a process that uses the local Hub; returns the lines that it prints."""

    def run_code(code, *arguments):
        done = forked.run("-c", code, *arguments, cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run_code


def repository(hub, repo_id):
    """The folder of a dataset."""
    return hub.folder / "datasets" / repo_id


def rows_of(hub, repo_id):
    """All rows of a dataset, in the order of its files."""
    files = sorted(repository(hub, repo_id).glob("data/*"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def commits(hub, repo_id):
    """The replies to attempts to commit."""
    return [seen.status for seen in hub.requests if f"/{repo_id}/commit/" in seen.path]


# --- the JSON Lines file ---------------------------------------------------------------------------------------------


def test_line_has_the_hash_of_the_clip_and_the_time(caption, clips, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, color in enumerate(["red", "blue"]):
        Image.new("RGB", (64, 48), color).save(frames / f"{number}.png")
    (frames / "notes.txt").write_text("no frame")
    result = caption(clips[0], "frames", clips[1].as_uri())
    assert result.exit_code == 0, result.output
    file, folder, address = read(tmp_path / "out.jsonl")
    assert file["sha256"] == hashlib.sha256(clips[0].read_bytes()).hexdigest()
    names = [(f"{n}.png", hashlib.sha256((frames / f"{n}.png").read_bytes()).hexdigest()) for n in range(2)]
    listing = "".join(f"{name} {digest}\n" for name, digest in names)
    assert folder["sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    assert address["sha256"] == hashlib.sha256(clips[1].read_bytes()).hexdigest()
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(file["time"]) < timedelta(minutes=5)
    assert file["time"].endswith("+00:00")
    assert media.content_hash(media.find_medium("https://example.org/clip.mp4")) is None


def test_hash_is_computed_in_the_worker(caption, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(splitting, "content_hash", lambda medium: f"process {os.getpid()}")
    assert caption(clips[0]).exit_code == 0
    (row,) = read(tmp_path / "out.jsonl")
    assert row["sha256"].startswith("process ") and row["sha256"] != f"process {os.getpid()}"


def test_file_of_an_older_version_is_refused_and_kept(caption, clips, tmp_path):
    out = tmp_path / "out.jsonl"
    assert caption(clips[0]).exit_code == 0
    (row,) = read(out)
    old = {name: value for name, value in row.items() if name not in ("id", "sha256", "time")}
    out.write_text(json.dumps(old) + "\n")
    result = caption(clips[0], clips[1])
    assert result.exit_code == 1 and 'has a caption without "id" and "sha256"' in result.stderr
    assert read(out) == [old]


# --- the dataset -----------------------------------------------------------------------------------------------------

STREAM = """
import json, sys
from datasets import load_dataset

for row in load_dataset(sys.argv[1], split="train", streaming=True):
    print(json.dumps(row))
"""


def test_captions_are_pushed_and_appended(hub, caption, push, checkpoint, clips, python, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert caption(clips[0], clips[1], "broken.mp4").exit_code == 1
    first = push("me/captions", clips[0], "--license", "Ask the owner")
    assert first.returncode == 0, first.stderr
    assert "0 captioned, 1 done before, 0 failed" in first.stdout
    counts = "2 captions added, 0 were there before, 1 without a caption, 0 left out; 0.01 MB in 1 shards"
    assert first.stdout.splitlines()[-1] == f"me/captions: {counts}"
    lines = read(tmp_path / "out.jsonl")
    streamed = [json.loads(line) for line in python(STREAM, "me/captions")]
    assert [row["video"] for row in streamed] == ["0.mp4", "1.mp4"]
    for row, line in zip(streamed, lines[:2], strict=True):
        local = ("id", "video", "path", "bytes", "mtime_ns", "model")
        assert row.items() >= {name: line[name] for name in line if name not in local}.items()
        assert (row["revision"], row["model"]) == (fingerprint(checkpoint), os.path.basename(checkpoint))
        assert row["start"] is None and row["adapter"] is None
    second = push("me/captions", *clips, "broken.mp4")
    assert second.returncode == 1, "a video cannot be read"
    assert "1 captioned, 2 done before, 1 failed" in second.stdout
    assert "me/captions: 1 captions added, 2 were there before, 1 without a caption" in second.stdout
    assert commits(hub, "me/captions") == [200, 200]
    folder = repository(hub, "me/captions")
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert files - {".gitattributes"} == {
        "README.md",
        "method.png",
        "data/train-00000.parquet",
        "data/train-00001.parquet",
    }
    assert [row["video"] for row in rows_of(hub, "me/captions")] == ["0.mp4", "1.mp4", "2.mp4"]
    assert "0 captions added, 3 were there before" in push("me/captions", *clips).stdout
    assert commits(hub, "me/captions") == [200, 200], "nothing new"
    everything = b"".join((folder / file).read_bytes() for file in files)
    for secret in (tmp_path, clips[0].parent, checkpoint):
        assert str(secret).encode() not in everything
    card = (folder / "README.md").read_text()
    words = sum(len(row["caption"].split()) for row in rows_of(hub, "me/captions")) / 3
    assert f"3 captions of 3 video clips, with {words:.1f} words on average" in card
    assert "license: other\n" in card and "license_name: Ask the owner\n" in card, "as the first push said"
    assert "size_categories:\n- n<1K" in card and "- synthetic" in card
    relicensed = push("me/captions", clips[0], "--license", "cc-by-4.0")
    assert relicensed.returncode == 0, relicensed.stderr
    assert "license: cc-by-4.0\n" in (folder / "README.md").read_text() and len(rows_of(hub, "me/captions")) == 3


def test_rows_differ_by_clip_model_prompt_and_frames(hub, caption, clips, python, tmp_path):
    assert caption(clips[0]).exit_code == 0
    (row,) = read(tmp_path / "out.jsonl")
    address = {name: value for name, value in row.items() if name != "path"} | {"sha256": None}
    others = [
        (1, row),
        (1, {**row, "prompt": "What | moves?"}),
        (1, {**row, "num_frames": 2}),
        (1, {**row, "end": 1}),
        (1, {**row, "adapter": "/home/me/adapter", "adapter_revision": "0123", "alpha": 4}),
        (0, {**row, "model": "/elsewhere/model", "path": "/elsewhere/copy.mp4", "video": "copy.mp4"}),
        (1, {**address, "video": "https://me:secret@example.org/clip.mp4?key=secret"}),
        (1, {**address, "video": "https://example.org/clip.mp4?id=2", "caption": "Of another clip."}),
    ]
    code = """
import json, sys
from pllava.data.publishing import publish_captions
for row in json.loads(sys.argv[1]):
    print(*(publish_captions(rows, "me/keys").added for rows in ([row], [row])))
"""
    pushed = python(code, json.dumps([row for _, row in others]))
    assert pushed == [f"{added} 0" for added, _ in others]
    rows = rows_of(hub, "me/keys")
    assert [row["video"] for row in rows[-2:]] == ["https://example.org/clip.mp4?..."] * 2
    assert rows[4]["adapter"] == "adapter"
    card = (repository(hub, "me/keys") / "README.md").read_text()
    assert "7 captions of 2 video clips," in card
    assert "| Describe the video. | 6 |" in card and "| What \\| moves? | 1 |" in card


def test_captions_of_several_prompts_and_parts_are_rows(hub, push, clips):
    options = ["--window", "1", "--prompt", "What moves?", "--prompt", "Where?"]
    first = push("me/parts", clips[0], *options)
    assert "me/parts: 4 captions added, 0 were there before" in first.stdout, first.stderr
    assert (
        "me/parts: 2 captions added, 4 were there before"
        in push("me/parts", clips[0], *options, "--end", "1.5").stdout
    )
    rows = rows_of(hub, "me/parts")
    assert [(row["start"], row["end"], row["prompt"]) for row in rows] == [
        (start, end, prompt) for start, end in ((0, 1), (1, 2), (1, 1.5)) for prompt in ("What moves?", "Where?")
    ]
    assert all(row["flags"] == ["truncated"] and len(row["frames"]) == row["num_frames"] for row in rows)
    assert len({row["prompt_hash"] for row in rows}) == 2 and max(rows[0]["frames"]) <= 10 <= min(rows[2]["frames"])


INTERRUPTED = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
from pllava.data.publishing import captions

mine, others, repo_id, times = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
create_commit, left = HfApi.create_commit, times

def commit_after_others(self, *args, **kwargs):
    global left
    if left:  # another process is quicker
        left, number = left - 1, left
        HfApi.create_commit = create_commit
        captions.publish_captions([{**row, "prompt": f"Number {number}?"} for row in others], repo_id)
        HfApi.create_commit = commit_after_others
    return create_commit(self, *args, **kwargs)

HfApi.create_commit = commit_after_others
try:
    print(captions.publish_captions(mine, repo_id).added)
except OSError as error:
    print(error)
"""


def test_commit_of_another_process_is_not_lost(hub, caption, push, clips, python, tmp_path):
    assert caption(*clips).exit_code == 0 and push("me/shared", clips[0]).returncode == 0
    first, second, _ = read(tmp_path / "out.jsonl")
    mine = [{**row, "prompt": f"Number {n}?"} for row in (first, second) for n in (1, 2)]
    # The other process has two of these four rows, in two commits
    assert python(INTERRUPTED, json.dumps(mine), json.dumps([first]), "me/shared", 2) == ["2"]
    assert commits(hub, "me/shared") == [200, 200, 412, 200, 412, 200]
    pushed = sorted((row["video"], row["prompt"]) for row in rows_of(hub, "me/shared"))
    expected = [(video, f"Number {n}?") for video in ("0.mp4", "1.mp4") for n in (1, 2)]
    assert pushed == sorted([(f"{n}.mp4", "Describe the video.") for n in range(3)] + expected)
    card = (repository(hub, "me/shared") / "README.md").read_text()
    assert "7 captions of 3 video clips" in card
    more = [{**first, "prompt": "More?"}]
    (error,) = python(INTERRUPTED, json.dumps(more), json.dumps([second, first]), "me/shared", 99)
    assert "412" in error and "run this again" in error and "\n" not in error


def test_next_shard_replaces_none(hub, caption, push, clips, tmp_path):
    for number, clip in enumerate(clips):
        assert caption(clip).exit_code == 0
        if number == 2:
            (repository(hub, "me/gap") / "data" / "train-00000.parquet").unlink()
            (tmp_path / "out.jsonl").write_text(json.dumps(read(tmp_path / "out.jsonl")[2]) + "\n")
        assert "1 captions added" in push("me/gap", clip).stdout
    assert [row["video"] for row in rows_of(hub, "me/gap")] == ["1.mp4", "2.mp4"]


def test_other_datasets_are_refused_and_kept(hub, caption, push, clips, tmp_path):
    assert caption(clips[0]).exit_code == 0
    written = (tmp_path / "out.jsonl").read_bytes()
    for name, file in [("me/text", "README.md"), ("me/table", "data/train-00000.parquet"), ("me/other", "rows.csv")]:
        path = repository(hub, name) / file
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"caption": ["mine"]}), path)
        content = path.read_bytes()
        result = push(name, clips[0])
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1] == (
            f"Error: {name} holds files that this command did not write ({file}): choose another dataset"
        )
        assert path.read_bytes() == content and not commits(hub, name)
    assert (tmp_path / "out.jsonl").read_bytes() == written


# --- with clips ------------------------------------------------------------------------------------------------------


def test_clips_are_embedded_and_play(caption, push, clips, python, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, clip in (("a.mp4", clips[0]), ("b.mp4", clips[1]), ("c.mp4", clips[2])):
        shutil.copy(clip, videos / name)
    (videos / "frames").mkdir()
    Image.new("RGB", (64, 48)).save(videos / "frames" / "0.png")
    assert caption("videos", "videos/frames").exit_code == 0
    row = {name: value for name, value in read(tmp_path / "out.jsonl")[0].items() if name != "path"}
    write_video(videos / "b.mp4", moving_frames(5, seed=9), fps=10)
    (videos / "c.mp4").unlink()
    with (tmp_path / "out.jsonl").open("a") as lines:
        address = {"id": "0" * 32, "video": "https://example.org/d.mp4", "sha256": None}
        lines.write(json.dumps({**row, **address}) + "\n")
    result = push("me/clips", "videos/a.mp4", "--push-clips")
    assert result.returncode == 0, result.stderr
    left_out = {line.split(": ", 1)[1] for line in result.stdout.splitlines() if line.startswith("left out: ")}
    assert left_out == {
        "videos/b.mp4: it has changed since it was captioned",
        "videos/c.mp4: there is no such file any more",
        "videos/frames: a folder of images cannot be embedded: make a video of it",
    }
    assert "2 captions added, 0 were there before, 0 without a caption, 3 left out" in result.stdout
    assert "1 clips are URLs: their rows have the URL, not the clip" in result.stdout
    code = """
import sys
from datasets import Video, load_dataset
rows = load_dataset("me/clips", split="train", streaming=True)
assert isinstance(rows.features["video"], Video), rows.features
for row in rows:
    print(row["video"]["path"], row["caption"])
    open(row["video"]["path"][-5:], "wb").write(row["video"]["bytes"] or b"")
"""
    assert [line.split(" ", 1)[0] for line in python(code)] == ["a.mp4", "https://example.org/d.mp4"]
    assert (decode_all(tmp_path / "a.mp4") == decode_all(clips[0])).all()
    # The repaired file is pushed by a later run, and a push without clips is refused
    shutil.copy(clips[1], videos / "b.mp4")
    assert "1 captions added, 2 were there before" in push("me/clips", "videos/b.mp4", "--push-clips").stdout
    refused = push("me/clips", "videos/b.mp4")
    assert refused.stderr.splitlines()[-1] == (
        "Error: me/clips has clips in its rows, so push to it with --push-clips, or choose another dataset"
    )
    assert push("me/names", "videos/b.mp4").returncode == 0
    private = push("me/names", "videos/b.mp4", "--private")
    assert "me/names exists and is public" in private.stderr.splitlines()[-1]
    refused = push("me/names", "videos/b.mp4", "--push-clips")
    assert "me/names names its clips, so push to it without --push-clips" in refused.stderr


SHARDS = """
import json, sys
from pathlib import Path
from huggingface_hub import HfFileSystem
from huggingface_hub.hf_file_system import HfFileSystemFile
from pllava.data.publishing import captions

captions.ROW_GROUP_BYTES = 250_000
rows = [json.loads(line) for line in open(sys.argv[1])]
fetched, fetch = [], HfFileSystemFile._fetch_range

def count(self, start, end):
    content = fetch(self, start, end)
    fetched.append(len(content))
    return content

HfFileSystemFile._fetch_range = count
for some in (rows[:30], rows):
    push = captions.publish_captions(some, "me/shards", embed_clips=True, max_shard_size="1MB")
    print(push.added, push.shards, sum(fetched))
"""


def test_shards_have_a_limit_and_their_clips_are_not_read_again(hub, caption, clips, python, tmp_path):
    assert caption(clips[0]).exit_code == 0
    (row,) = read(tmp_path / "out.jsonl")
    with (tmp_path / "many.jsonl").open("w") as lines:
        for number in range(40):
            path = tmp_path / f"{number}.mp4"
            path.write_bytes(os.urandom(100_000))
            lines.write(json.dumps({**row, "video": path.name, "path": str(path), "sha256": None}) + "\n")
    first, second = ([int(value) for value in line.split()] for line in python(SHARDS, "many.jsonl"))
    assert first == [30, 4, 0] and second[:2] == [10, 2]
    sizes = [file.stat().st_size for file in (repository(hub, "me/shards") / "data").iterdir()]
    assert max(sizes) < 1_100_000 and sum(sizes) > 4_000_000
    assert second[2] < 4 * 2**16 + 30_000, "pyarrow reads the last 64 KB of a file; of the clips, 3 MB, nothing else"
    assert [row["video"]["path"] for row in rows_of(hub, "me/shards")] == [f"{n}.mp4" for n in range(40)]


# --- use -------------------------------------------------------------------------------------------------------------

TRAIN = """
import json, sys
from pllava.data.row_formats import FEATURES
from pllava.data.sources import Source, load_source

for repo_id, media in (("me/with_clips", None), ("me/without_clips", sys.argv[1])):
    for row in load_source(Source(repo_id, media=media)):
        assert row.keys() == FEATURES.keys() and row["error"] is None, row
        (video,) = row["videos"]
        question, answer = row["messages"]
        assert [part["type"] for part in question["content"]] == ["video", "text"]
        content = video["bytes"] or open(video["path"], "rb").read()
        print(json.dumps([len(content), question["content"][1]["text"], answer["content"][0]["text"], video["end"]]))
"""


def test_training_reads_the_dataset(caption, push, clips, python, tmp_path):
    assert caption(*clips, "--end", 1.5).exit_code == 0
    for repo_id, options in (("me/with_clips", ["--push-clips"]), ("me/without_clips", [])):
        assert push(repo_id, clips[0], "--end", "1.5", *options).returncode == 0
    expected = [
        [os.path.getsize(row["path"]), row["prompt"], row["caption"], 1.5] for row in read(tmp_path / "out.jsonl")
    ]
    assert [json.loads(line) for line in python(TRAIN, clips[0].parent)] == expected * 2


def test_code_of_the_card_runs(hub, caption, push, clips, python, tmp_path):
    assert caption(*clips).exit_code == 0
    for repo_id, options in (("me/carded", []), ("me/carded_clips", ["--push-clips"])):
        assert push(repo_id, clips[0], *options).returncode == 0
        card = (repository(hub, repo_id) / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert python(code) == [f"0.mp4 {read(tmp_path / 'out.jsonl')[0]['caption']}"]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_failed_push_is_one_line_and_keeps_the_file(hub, push, clips, tmp_path):
    hub.faults.refused_tokens.add("hf_unknown")
    for captioned, others, message in [
        (1, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "me/lost: http://127.0.0.1:9 cannot be reached"),
        (0, {"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
        (0, {"HF_TOKEN": "hf_unknown"}, "me/lost: the Hub replied 401"),
    ]:
        result = push("me/lost", clips[0], **others)
        *_, error = result.stderr.splitlines()
        assert result.returncode == 1 and error.startswith("Error: ") and message in error, result.stderr
        assert f"{captioned} captioned, {1 - captioned} done before" in result.stdout
        assert len(read(tmp_path / "out.jsonl")) == 1 and "Traceback" not in result.stderr


def test_options_of_a_push_need_one(caption, clips, tmp_path):
    for options, message in [
        (["--push-clips"], "name it with --push"),
        (["--private"], "name it with --push"),
        (["--license", "mit"], "name it with --push"),
        (["--push", "a/b/c"], "'a/b/c'"),
    ]:
        result = caption(clips[0], *options)
        assert result.exit_code and message in result.stderr.splitlines()[-1]
        assert not (tmp_path / "out.jsonl").exists()


def test_published_name_of_a_model(tmp_path, monkeypatch):
    cached = tmp_path / "models--some-org--PLLaVA-7b" / "snapshots" / "0123abcd"
    for name in ("mine/nano", "run/checkpoint-20", "run/last", "converted", "merged", "trained"):
        (tmp_path / name).mkdir(parents=True)
    cached.mkdir(parents=True)
    source, base = {"repo_id": "some-org/pllava"}, {"repo_id": "some-org/llava"}
    for folder, origin in (
        ("converted", {"kind": "official", "source": source}),
        ("merged", {"kind": "merged", "source": source, "adapter": base}),
        ("trained", {"kind": "trained", "source": source}),
    ):
        (tmp_path / folder / "config.json").write_text(json.dumps({"origin": origin}))
    names = {name: published_name(str(tmp_path / name)) for name in ("mine/nano", "run/checkpoint-20", "gone/model")}
    assert names == {"mine/nano": "nano", "run/checkpoint-20": "run", "gone/model": "model"}
    assert published_name("some-org/PLLaVA-7b") == published_name(str(cached)) == "some-org/PLLaVA-7b"
    monkeypatch.chdir(tmp_path)
    assert published_name("run/last") == "last" and published_name("./run/last/") == "last"
    assert published_name("converted") == "some-org/pllava"
    assert published_name("merged") == "merged" and published_name("trained") == "trained"
