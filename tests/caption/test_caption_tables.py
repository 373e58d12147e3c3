"""Captions as a Parquet or CSV table, beside the JSON Lines that a run continues."""

import csv
import json
import os
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
from caption_lines import read
from datasets import load_dataset

from pllava.caption.export import COLUMNS, write_table

TEXT = 'He says: "Où est\nle chien?", and — 狗\r\n🐶; 100 %'


@pytest.fixture
def caption(caption, tmp_path):
    """Captions into the file that is named first."""
    return lambda out, *arguments: caption("--out", tmp_path / out, *arguments)


def read_table(file):
    """Return the rows of a table, without the columns that a row lacks."""
    if file.suffix == ".parquet":
        rows = pq.read_table(file).to_pylist()
    else:
        with file.open(encoding="utf-8", newline="") as content:
            rows = list(csv.DictReader(content))
    return [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_table_has_what_the_lines_have_and_is_continued(caption, clips, tmp_path, suffix):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    finished = caption(f"out{suffix}", clips[0], broken, "--prompt", TEXT, "--end", 1.5, "--near-duplicates")
    assert finished.exit_code == 1 and "1 captioned, 0 done before, 1 failed" in finished.stdout, finished.output
    assert {file.name for file in tmp_path.iterdir()} >= {f"out{suffix}", "out.jsonl"}
    again = caption(f"out{suffix}", *clips, "--prompt", TEXT, "--end", 1.5, "--near-duplicates", "--retry-flagged")
    assert "3 captioned, 0 done before" in again.stdout
    assert "0 captioned, 3 done before" in caption(f"out{suffix}", *clips, "--prompt", TEXT, "--end", 1.5).stdout
    lines, table = read(tmp_path / "out.jsonl"), read_table(tmp_path / f"out{suffix}")
    assert len(lines) == len(table) == 4
    assert set().union(*lines) <= {*COLUMNS}, "no column of a line is lost"
    for line, row in zip(lines, table, strict=True):
        expected = {name: value for name, value in line.items() if value is not None}
        if suffix == ".csv":
            expected = {
                name: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
                for name, value in expected.items()
            }
        else:
            assert row.pop("embedding", None) == pytest.approx(expected.pop("embedding", None))
        assert row == expected


def test_empty_table_has_all_columns(tmp_path):
    for name in ("a.parquet", "a.csv"):
        write_table([], tmp_path / name)
    assert pq.read_table(tmp_path / "a.parquet").column_names == [*COLUMNS] == [*pd.read_csv(tmp_path / "a.csv")]


def test_other_libraries_read_the_tables(tmp_path):
    made = {
        "sha256": "0" * 64,
        "num_frames": 16,
        "start": 0.5,
        "frames": [0, 5],
        "flags": ["truncated"],
        "retried": True,
    }
    rows = [{"video": f"{n}.mp4", "caption": TEXT, **(made if n % 2 else {})} for n in range(5)]
    for name in ("a.parquet", "a.csv"):
        write_table(iter(rows), tmp_path / name)
    for table in (pd.read_parquet(tmp_path / "a.parquet"), pd.read_csv(tmp_path / "a.csv")):
        assert table["video"].tolist() == [row["video"] for row in rows] and set(table["caption"]) == {TEXT}
        assert table["start"].dropna().tolist() == [0.5, 0.5] and table["num_frames"].dropna().tolist() == [16, 16]
    cache = str(tmp_path / "cache")
    loaded = load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=cache)
    assert loaded[1].items() >= {"caption": TEXT, **made}.items() and loaded[0]["frames"] is None
    loaded = load_dataset("csv", data_files=str(tmp_path / "a.csv"), split="train", cache_dir=cache)
    assert loaded["caption"][:] == [TEXT] * 5 and json.loads(loaded[1]["frames"]) == [0, 5]


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_failed_table_leaves_the_old_one(tmp_path, name):
    file = tmp_path / name
    write_table([{"video": "a.mp4", "caption": "A bar."}], file)
    content = file.read_bytes()

    def rows():
        yield {"video": "b.mp4", "caption": "Another."}
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write_table(rows(), file)
    assert file.read_bytes() == content and [each.name for each in tmp_path.iterdir()] == [name]


def test_name_that_is_not_utf8(caption, clips, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(clips[0], odd)
    for name in ("out.parquet", "out.csv"):
        finished = caption(name, tmp_path)
        assert finished.exit_code == 0, finished.output
        (row,) = read(tmp_path / "out.jsonl")
        assert os.fsencode(row["path"]) == os.fsencode(odd)
        assert read_table(tmp_path / name)[0]["path"] == str(tmp_path / r"caf\udce9.mp4")


def test_other_suffixes_are_refused(caption, clips, tmp_path):
    for name in ("out.json", "out.txt", "out"):
        refused = caption(name, clips[0])
        assert refused.exit_code == 2 and "ends in .jsonl, .parquet, .csv" in refused.stderr
    assert not list(tmp_path.iterdir())
