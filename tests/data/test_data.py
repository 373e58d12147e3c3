"""Sources of training data, their mixtures, and the stream in which training reads them."""

import importlib.util
import io
import json
import os
import sys
import tarfile
from collections import Counter
from itertools import islice, pairwise, takewhile
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import TrainerState

from pllava.data import row_formats
from pllava.data.mixture import as_mixture, load_sources
from pllava.data.sources import Source, load_source
from pllava.train.callbacks import EpochCallback
from pllava.train.loader import stream
from pllava.train.loader.skipped import SkippedExamples
from pllava.train.loader.stream import RowStream
from pllava.train.loader.stream_loader import StreamLoader, redistribute

QUESTION, ANSWER = "What moves?", "A bar."


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def text(content):
    return " ".join(part["text"] for part in content if part["type"] == "text")


def turns(row):
    return [(message["role"], text(message["content"])) for message in row["messages"]]


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


ROWS = {
    "videochat2": {"video": "a.mp4", "QA": [{"i": "", "q": QUESTION, "a": ANSWER}]},
    "messages": {"messages": chat(QUESTION, ANSWER), "videos": ["a.mp4"]},
    "messages with a placeholder": {"messages": chat(f"<video>\n{QUESTION}", ANSWER), "video": "a.mp4"},
    "messages of parts": {
        "messages": [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ],
        "videos": [{"path": "a.mp4"}],
    },
    "llava": {
        "conversations": [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": ANSWER}],
        "video": "a.mp4",
    },
    "question and answer": {"video": "a.mp4", "question": QUESTION, "answer": ANSWER},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_rows_of_all_formats(tmp_path, row, suffix):
    file = tmp_path / f"train.{suffix}"
    file.write_text(json.dumps([row]) if suffix == "json" else json.dumps(row) + "\n")
    (read,) = load_source(Source(str(file)))
    assert turns(read) == [("user", QUESTION), ("assistant", ANSWER)]
    assert [part["type"] for part in read["messages"][0]["content"]] == ["video", "text"]
    assert read["videos"] == [{"path": str(tmp_path / "a.mp4"), "bytes": None, "start": None, "end": None}]
    assert (read["source"], read["id"], read["images"]) == ("train", f"train.{suffix}#0", [])


def test_videochat2_instruction_comes_first_and_questions_may_be_empty(tmp_path):
    rows = [
        {"video": "a.mp4", "QA": [{"i": "Look.", "q": "", "a": ANSWER}, {"i": "Not this.", "q": "Why?", "a": "No."}]},
        {"image": "b.jpg", "QA": [{"q": QUESTION, "a": ANSWER}], "start": 1, "end": 2.5},
        {"video": "a.mp4", "QA": [{"q": QUESTION, "a": ANSWER}], "start": 1, "end": 2.5},
    ]
    file = tmp_path / "train.json"
    file.write_text(json.dumps(rows))
    first, second, third = load_source(Source(str(file), media="/media", name="mine"))
    assert turns(first)[0] == ("system", "Look.") and turns(first)[1] == ("user", "") and len(turns(first)) == 5
    assert second["images"] == [{"path": "/media/b.jpg", "bytes": None}] and second["source"] == "mine"
    assert third["videos"] == [{"path": "/media/a.mp4", "bytes": None, "start": 1.0, "end": 2.5}]


def write_parquet(path, rows, row_group_size=2):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)


def write_tar(path, rows):
    with tarfile.open(path, "w") as tar:
        for index, row in enumerate(rows):
            files = {"mp4": row["videos"][0]["bytes"], "json": json.dumps({"messages": row["messages"]}).encode()}
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{index:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


WRITERS = {"parquet": write_parquet, "tar": write_tar}


def embedded(count, first=0, clip_bytes=0):
    return [
        {
            "messages": chat(f"What moves in {n}?", ANSWER),
            "videos": [{"bytes": f"clip {n}".encode() + os.urandom(clip_bytes), "path": f"{n}.mp4"}],
            "id": str(n),
        }
        for n in range(first, first + count)
    ]


@pytest.mark.parametrize("suffix", WRITERS)
def test_embedded_videos_stay_bytes(tmp_path, suffix):
    for shard in range(3):
        WRITERS[suffix](tmp_path / f"part-{shard}.{suffix}", embedded(5, first=5 * shard))
    rows = load_source(Source(str(tmp_path / f"*.{suffix}"), name="mine"))
    assert rows.num_shards == 3
    read = list(rows)
    assert [row["videos"][0]["bytes"] for row in read] == [f"clip {n}".encode() for n in range(15)]
    assert turns(read[7]) == [("user", "What moves in 7?"), ("assistant", ANSWER)] and read[7]["source"] == "mine"


def test_webdataset_of_clips_and_captions(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in {"1.mp4": b"clip", "1.txt": b"A bar moves."}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (row,) = load_source(Source(str(tmp_path)))
    assert turns(row)[1] == ("assistant", "A bar moves.") and row["videos"][0]["bytes"] == b"clip"


def test_changed_file_is_not_read_from_the_cache(tmp_path):
    file = tmp_path / "a.jsonl"
    for answer in ("one", "two"):
        file.write_text(json.dumps({"question": QUESTION, "answer": answer}))
        assert turns(load_source(Source(str(file)))[0])[1] == ("assistant", answer)


def test_cached_rows_are_parsed_again_after_a_change_of_the_parser(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"caption": ANSWER}))
    source = Source(str(tmp_path / "a.jsonl"))
    assert turns(load_source(source)[0])[0] == ("user", row_formats.DEFAULT_QUESTION)
    edited = tmp_path / "edited.py"
    edited.write_text(Path(row_formats.__file__).read_text().replace(row_formats.DEFAULT_QUESTION, "What is shown?"))
    spec = importlib.util.spec_from_file_location("pllava.data.edited", edited)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr("pllava.data.sources.try_parse_row", module.try_parse_row)
    assert turns(load_source(source)[0])[0] == ("user", "What is shown?")


# --- mixtures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path):
    """40, 20 and 10 rows; the last two are shards with embedded bytes."""
    lines = [json.dumps({"question": str(n), "answer": "a", "video": "a.mp4", "id": n}) for n in range(40)]
    (tmp_path / "large.jsonl").write_text("\n".join(lines))
    for shard in range(4):
        write_parquet(tmp_path / f"p-{shard}.parquet", embedded(5, first=100 + 5 * shard))
        write_tar(tmp_path / f"t-{shard}.tar", embedded(3, first=1000 + 3 * shard))
    return [
        Source(str(tmp_path / "large.jsonl"), weight=4),
        Source(str(tmp_path / "p-*.parquet"), name="parquet", weight=2),
        Source(str(tmp_path / "t-*.tar"), name="tar", weight=1),
    ]


def one_epoch(mixture, number=0):
    """The sources and ids of the rows of an epoch, in order."""
    rows = (mixture.read(row) for row in mixture.epoch(number, seed=3))
    return [(row["source"], row["id"]) for row in rows]


def test_mixture_contains_each_row_once(sources):
    mixture = load_sources(sources)
    read = Counter(one_epoch(mixture))
    assert mixture.length is None and len(read) == 40 + 20 + 12 and set(read.values()) == {1}


def test_weights_are_sampling_proportions(sources):
    counts = Counter(source for source, _ in one_epoch(load_sources(sources, stopping_strategy="all_exhausted")))
    assert counts["large"] > 1.3 * counts["parquet"] > 1.3 * counts["tar"] > 0


def test_sources_of_known_length_need_no_weights(tmp_path, sources):
    (tmp_path / "small.jsonl").write_text(json.dumps({"question": "s", "answer": "a"}))
    mixture = load_sources([Source(sources[0].path), Source(str(tmp_path / "small.jsonl"))])
    assert mixture.length == 41
    assert Counter(source for source, _ in one_epoch(mixture)) == {"large": 40, "small": 1}
    with pytest.raises(ValueError, match="its length is not known"):
        load_sources([Source(sources[0].path), Source(sources[1].path)])


# --- the stream ------------------------------------------------------------------------------------------------------


def read_all(stream, count):
    """The ids of the next rows, and the cursors after them."""
    return [(stream.mixture.read(row)["id"], cursor) for row, cursor in islice(stream, count)]


def ids(stream, count):
    return [name for name, _ in read_all(stream, count)]


KINDS = {"arrow": slice(0, 1), "parquet": slice(1, 2), "webdataset": slice(2, 3), "mixture": slice(0, 3)}
COUNTS = {"arrow": 40, "parquet": 20, "webdataset": 12, "mixture": 72, "streamed": 72, "shards": 24}
COUNTS |= {"row groups": 24, "row groups and JSON": 64}


@pytest.fixture(params=COUNTS)
def mixture(request, sources, tmp_path):
    """Each kind of source alone, all of them together, and streamed datasets."""
    if request.param in KINDS:
        return load_sources(sources[KINDS[request.param]]), COUNTS[request.param]
    if request.param.startswith("row groups"):  # of 4, 3 and 1 rows, in which the clips are large
        for first, count in {0: 11, 11: 8, 19: 5}.items():
            write_parquet(tmp_path / f"g-{first}.parquet", embedded(count, 100 + first, clip_bytes=30_000), 4)
        groups = Source(str(tmp_path / "g-*.parquet"), weight=2)
        return load_sources([groups, *sources[:1]] if "JSON" in request.param else [groups]), COUNTS[request.param]
    ids = [str(n) for n in range(COUNTS[request.param])]
    rows = Dataset.from_dict({"source": ["a"] * len(ids), "id": ids})
    return as_mixture(rows.to_iterable_dataset(num_shards=12 if request.param == "shards" else 1)), len(ids)


def test_stream_resumes_from_any_cursor(mixture):
    rows, count = mixture
    whole = read_all(RowStream(rows, seed=3, buffer_size=7), count + 20)  # beyond the end of the first epoch
    for cut in range(1, count + 10, 5):
        again = RowStream(rows, seed=3, buffer_size=7)
        again.cursor = json.loads(json.dumps(whole[cut - 1][1]))  # as it is written into a checkpoint
        assert ids(again, 10) == [name for name, _ in whole[cut : cut + 10]]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_an_epoch(mixture, world_size):
    rows, count = mixture
    read = []
    for rank in range(world_size):
        stream = RowStream(rows, seed=3, buffer_size=7, rank=rank, world_size=world_size)
        read += [name for name, place in read_all(stream, count) if place["epoch"] == 0]
    assert len(set(read)) == count and len(read) == count


@pytest.mark.parametrize("mixture", [kind for kind in COUNTS if kind != "shards"], indirect=True)
@pytest.mark.parametrize("sizes", [(2, 3), (4, 1), (3, 2, 4)])
def test_resuming_with_another_world_size_loses_no_row(mixture, sizes):
    """Each world size reads a part of the epoch, the last one the rest; some ranks are ahead of others."""
    rows, count = mixture
    read, states = [], [{"place": RowStream(rows, 3, 7).cursor, "skipped": {"seen": 0}}]
    for number, world_size in enumerate(sizes):
        places = []
        for rank in range(world_size):
            stream = RowStream(rows, seed=3, buffer_size=7, rank=rank, world_size=world_size)
            stream.cursor = json.loads(json.dumps(redistribute(states, rank)))["place"]
            done = count if number == len(sizes) - 1 else 1 + 2 * rank
            taken = [(name, place) for name, place in read_all(stream, done) if place["epoch"] == 0]
            read += [name for name, _ in taken]
            places.append({"place": taken[-1][1] if taken else stream.cursor, "skipped": {"seen": done}})
        states = places
    assert sorted(read) == sorted(set(read)) and len(read) == count


@pytest.mark.parametrize("world_size", [2, 3])
def test_epoch_is_right_after_resuming_with_another_world_size(world_size):
    """One process reads half of an epoch, then several read a quarter."""
    rows = as_mixture(Dataset.from_dict({"id": [str(n) for n in range(24)]}))
    _, before = read_all(RowStream(rows, 3, 7), 12)[-1]
    resumed = RowStream(rows, 3, 7, 0, world_size)
    skipped = {"seen": 12, "unreadable": 0, "too_long": 0, "lost_turns": 0}
    loader = StreamLoader(resumed, SimpleNamespace(skipped=SkippedExamples()), batch_size=1)
    loader.load_state_dict(redistribute([{"place": before, "skipped": skipped}], rank=0))
    callback, args, state = EpochCallback(loader), SimpleNamespace(world_size=world_size), TrainerState()
    callback.on_step_end(args, state, None)
    assert state.epoch == 0.5
    _, loader.cursor = read_all(resumed, 6 // world_size)[-1]
    callback.on_step_end(args, state, None)
    assert state.epoch == 0.75


def test_global_batch_does_not_depend_on_world_size(sources):
    def batches(world_size):
        size = 4 // world_size
        streams = [iter(RowStream(rows, 3, 7, rank, world_size)) for rank in range(world_size)]
        return [
            sorted(rows.read(row)["id"] for stream in streams for row, _ in islice(stream, size)) for _ in range(20)
        ]

    rows = load_sources(sources)
    assert batches(1) == batches(2) == batches(4)


def bytes_read():
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("only Linux counts what a process reads")
    return int(counters.read_text().split("rchar: ")[1].split()[0])


@pytest.mark.parametrize(
    ("world_size", "buffer_size", "block_bytes"),
    [(1, 4000, 10**9), (1, 30, 10**9), (1, 4000, 600_000), (2, 4000, 10**9), (4, 30, 10**9)],
)
def test_row_group_is_read_once_by_one_rank(tmp_path, monkeypatch, world_size, buffer_size, block_bytes):
    """Four groups of 100 rows, as `datasets` writes them, with blocks larger and smaller than a group."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", block_bytes)
    file = tmp_path / "one.parquet"
    write_parquet(file, embedded(400, clip_bytes=20_000), row_group_size=100)
    mixture, read = load_sources([Source(str(file))]), []
    for rank in range(world_size):
        before = bytes_read()
        read += ids(RowStream(mixture, 3, buffer_size, rank, world_size), 400 // world_size)
        assert (bytes_read() - before) / file.stat().st_size < 1.2 / world_size
    assert len(set(read)) == 400


@pytest.mark.parametrize(("rows", "exact"), [([120, 120], True), ([137], False), ([110, 120, 130], False)], ids=str)
def test_ranks_have_equally_many_rows_of_unequal_row_groups(tmp_path, rows, exact):
    """Each file has groups of 100 rows, and a smaller last group."""
    examples = embedded(sum(rows), clip_bytes=5_000)
    for number, count in enumerate(rows):
        part, examples = examples[:count], examples[count:]
        write_parquet(tmp_path / f"{number}.parquet", part, row_group_size=100)
    mixture, read = load_sources([Source(str(tmp_path / "*.parquet"))]), []
    for rank in range(2):
        epoch = takewhile(lambda pair: pair[1]["epoch"] == 0, RowStream(mixture, 3, 4000, rank, world_size=2))
        read.append([mixture.read(row)["id"] for row, _ in epoch])
    assert len(read[0] + read[1]) == len(set(read[0] + read[1])) == sum(rows)
    counts = sorted(map(len, read))
    assert counts[0] > 0.4 * sum(rows) and (counts[0] == counts[1] or not exact)


def test_rank_reads_only_the_tar_members_of_its_own_rows(tmp_path):
    """One tar file, mixed with JSON, cannot be divided into shards for each rank."""
    file = tmp_path / "one.tar"
    write_tar(file, embedded(80, clip_bytes=100_000))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": QUESTION, "answer": ANSWER}))
    mixture = load_sources([Source(str(path), weight=1) for path in sorted(tmp_path.glob("*.*"))])
    for rank in range(8):
        before = bytes_read()
        ids(RowStream(mixture, 3, 4000, rank, world_size=8), 10)
        assert (bytes_read() - before) / file.stat().st_size < 0.4  # an eighth, and the headers of all


def test_damaged_row_group_loses_only_its_own_rows(tmp_path):
    file = tmp_path / "a.parquet"
    write_parquet(file, embedded(40, clip_bytes=20_000), row_group_size=10)
    column = pq.read_metadata(file).row_group(2).column(2)
    with file.open("r+b") as content:
        content.seek(column.dictionary_page_offset or column.data_page_offset)
        content.write(bytes(100))
    mixture, lost = load_sources([Source(str(file))]), []
    for row, _ in islice(RowStream(mixture, 3, 4000), 40):
        try:
            mixture.read(row)
        except ValueError as error:
            assert str(file) in str(error)
            lost.append(row["reference"]["row"])
    assert sorted(lost) == list(range(20, 30))


def test_epochs_have_different_orders(mixture):
    """Of 12 to 72 rows in batches of 2, one in 6 to 36 stays in its batch by chance."""
    rows, count = mixture
    read = ids(RowStream(rows, seed=3, buffer_size=4000), 5 * count)
    epochs = [read[start : start + count] for start in range(0, 5 * count, count)]
    batches = [{name: place // 2 for place, name in enumerate(epoch)} for epoch in epochs]
    assert all(sorted(epoch) == sorted(batches[0]) for epoch in batches)
    kept = [before[name] == epoch[name] for before, epoch in pairwise(batches) for name in epoch]
    assert sum(kept) / len(kept) < 0.3


def test_sorted_shards_are_mixed(tmp_path):
    """Of ten shards with one task each, all tasks are among the first rows."""
    for task in range(10):
        write_parquet(tmp_path / f"{task}.parquet", embedded(60, first=1000 * task))
    first = ids(RowStream(load_sources([Source(str(tmp_path))]), seed=3, buffer_size=4000), 60)
    assert len({int(name) // 1000 for name in first}) == 10


def test_sorted_row_groups_are_mixed(tmp_path, monkeypatch):
    """Ten files with one task each, in row groups so large that a block holds less than two of them."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1_500_000)
    for task in range(10):
        write_parquet(tmp_path / f"{task}.parquet", embedded(50, 1000 * task, clip_bytes=20_000), row_group_size=50)
    first = ids(RowStream(load_sources([Source(str(tmp_path))]), seed=3, buffer_size=4000), 60)
    assert len({int(name) // 1000 for name in first}) == 10


def test_source_without_rows_is_an_error(tmp_path):
    write_parquet(tmp_path / "a.parquet", embedded(1))
    empty = load_source(Source(str(tmp_path / "a.parquet"))).filter(lambda row: False)
    with pytest.raises(ValueError, match="have no rows"):
        next(iter(RowStream(as_mixture(empty), 0, 4)))
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="a.jsonl has no rows"):
        load_sources([Source(str(tmp_path / "a.jsonl"))])


def test_load_source_searches_folders(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").write_text(json.dumps({"question": QUESTION, "answer": ANSWER, "video": "b.mp4"}))
    (row,) = load_source(Source(str(tmp_path)))
    assert Path(row["videos"][0]["path"]) == tmp_path / "deep" / "b.mp4"
    write_parquet(tmp_path / "a.parquet", [{"question": QUESTION, "answer": ANSWER, "video": "b.mp4"}])
    (row,) = load_source(Source(str(tmp_path / "a.parquet")))
    assert Path(row["videos"][0]["path"]) == tmp_path / "b.mp4"
