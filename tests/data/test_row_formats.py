"""Rows that cannot be used are skipped, with an error that names the file, the line and the field."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pllava.data.inspection import inspect_source
from pllava.data.mixture import load_sources
from pllava.data.row_formats import MAX_CHARACTERS, parse_row, try_parse_row
from pllava.data.sources import Source, load_source
from pllava.train import VideoChatCollator
from pllava.train.loader.skipped import Skipped, SkippedExamples, read_skipped
from pllava.train.loader.stream import RowStream
from pllava.train.loader.stream_loader import StreamLoader

GOOD = {"question": "What moves?", "answer": "A bar."}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def answered(**fields):
    return {**GOOD, **fields}


def chat(*contents):
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


BAD = {  # rows or unparsed lines, and a part of the error
    "no known form": ({"video": "a.mp4"}, "a row needs `messages`"),
    "no object": (["a.mp4", "A bar."], "the row should be an object of named fields; got ['a.mp4', 'A bar.']"),
    "no JSON": (b'{"answer": "A ', "the line is not JSON in UTF-8: Unterminated string"),
    "Latin-1": (
        '{"answer": "Caf\xe9"}'.encode("latin-1"),
        "the line is not JSON in UTF-8: 'utf-8' codec",
    ),
    "deep nesting": (b'{"answer": ' + b"[" * 200_000, "the line is not JSON in UTF-8: maximum recursion depth"),
    "half a character": (b'{"answer": "\\ud83d"}', "`answer` should be Unicode text; character 0 is a lone surrogate"),
    "half a path": (b'{"video": "\\ud83d.mp4", "answer": "A bar."}', "`video[0].path` should be Unicode text"),
    "a number for a text": (answered(answer=7), "`answer` should be text; got 7"),
    "an object for a question": (answered(question={"a": 1}), "`question` should be text; got {'a': 1}"),
    "an empty answer": (answered(answer=""), "`answer` is empty: there is nothing to learn"),
    "a blank caption": ({"video": "a.mp4", "caption": " \n"}, "`caption` is empty"),
    "a line of megabytes": (
        answered(answer="red " * MAX_CHARACTERS),
        "its texts have 800,011 characters; at most 200,000",
    ),
    "QA without an answer": ({"QA": [{"q": "What?"}]}, "`QA[0].a` should be text; got None"),
    "QA with an empty answer": ({"QA": [{"q": "What?", "a": ""}]}, "`QA[0].a` is empty"),
    "QA of lists": (
        {"QA": [["What?", "A bar."]]},
        "`QA[0]` should be an object of named fields; got ['What?', 'A bar.']",
    ),
    "QA that is an object": ({"QA": {"q": "What?", "a": "A bar."}}, "`QA` should be a list; got {"),
    "turns that are a number": ({"messages": 7}, "`messages` should be a list; got 7"),
    "a turn that is a list": ({"messages": [["user", "Hi"]]}, "`messages[0]` should be an object of named fields"),
    "a turn without a role": ({"conversations": [{"value": "Hi"}]}, "`conversations[0]` needs `role` and `content`"),
    "a turn without a text": ({"conversations": [{"from": "human"}]}, "`conversations[0]` needs `role` and `content`"),
    "a part that is a text": (chat(["Hi"], "Ho"), "`messages[0].content[0]` should be an object of named fields"),
    "a part of another type": (
        chat([{"type": "audio"}], "Ho"),
        "`messages[0].content[0].type` should be text, video or",
    ),
    "a part without a text": (
        chat([{"type": "text"}], "Ho"),
        "`messages[0].content[0].text` should be text; got None",
    ),
    "an empty turn": (chat("Hi", "Ho", "And?", ""), "`messages[3].content` is empty: there is nothing to learn"),
    "no answer at all": (chat("Hi"), "needs an answer of the assistant"),
    "no question": ({"messages": [{"role": "assistant", "content": "Ho"}]}, "needs a question of the user"),
    "half a preference": ({"prompt": "Hi", "chosen": "Ho"}, "preferences need `chosen` and `rejected`"),
    "an empty preference": ({"prompt": "Hi", "chosen": "", "rejected": "No."}, "`chosen` is empty"),
    "two placeholders": (
        answered(question="<video> <video>", video="a.mp4"),
        "2 video parts, but the row has 1 videos",
    ),
    "a null video": (answered(video=None), "`video` is null: name a file, or omit the field"),
    "a null video of QA": ({"video": None, "QA": [{"q": "What?", "a": "A bar."}]}, "`video` is null"),
    "a video without a name": (
        answered(videos=["a.mp4", ""], question="<video><video>"),
        "`videos[1]` should name a file",
    ),
    "a video that is a number": (answered(video=7), "`video[0]` should be an object of named fields; got 7"),
    "a path that is a list": (answered(video={"path": ["a.mp4"]}), "`video[0].path` should be text; got ['a.mp4']"),
    "a start out of bounds": (
        b'{"video": "a", "answer": "b", "start": 1e999}',
        "`start` should be a number of seconds; got inf",
    ),
    "a huge end": (answered(video="a.mp4", end=10**400), "`end` should be a number of seconds; got 1000"),
    "a start in words": (answered(video="a.mp4", start="abc"), "`start` should be a number of seconds; got 'abc'"),
    "a clip's end in words": (
        answered(video={"path": "a", "end": "b"}),
        "`video[0].end` should be a number of seconds",
    ),
    "a caption that failed": ({"video": "a.mp4", "error": "It is empty."}, "there is no caption: It is empty."),
}


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_error_names_location_and_field(row, message):
    read = try_parse_row(row, "rows", "rows.jsonl#1", "", location="rows.jsonl, line 2")
    assert read["error"].startswith("rows.jsonl, line 2: ") and message in read["error"]
    assert len(read["error"]) < 400
    assert (read["source"], read["id"], read["messages"], read["videos"]) == ("rows", "rows.jsonl#1", [], [])


def write_lines(file, rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(lines))
    return Source(str(file))


def test_training_skips_the_bad_rows_that_inspection_lists(processor, tmp_path):
    source = write_lines(tmp_path / "rows.jsonl", [GOOD, *(row for row, _ in BAD.values()), *[GOOD] * len(BAD)])
    report = inspect_source(source, processor, workers=0)
    summary = report.summary()
    names = ("samples", "skipped", "malformed", "unreadable")
    assert [summary[name] for name in names] == [2 * len(BAD) + 1, len(BAD), len(BAD), 0]
    assert [problem.id for problem in report.problems] == [f"rows.jsonl#{n}" for n in range(1, len(BAD) + 1)]
    for line, (problem, (_, message)) in enumerate(zip(report.problems, BAD.values(), strict=True), start=2):
        assert problem.reason.startswith(f"{tmp_path / 'rows.jsonl'}, line {line}: ") and message in problem.reason

    skipped = SkippedExamples(tmp_path / "_skipped.jsonl", max_unreadable=0.9)
    stream = RowStream(load_sources([source]), seed=0, buffer_size=4)
    loader = StreamLoader(stream, VideoChatCollator(processor, skipped=skipped), batch_size=len(BAD) + 1)
    next(iter(loader))  # all good rows: the whole epoch is read
    listed = read_skipped(tmp_path / "_skipped.jsonl")
    assert {row.error for row in listed} <= {problem.reason for problem in report.problems}
    assert len(listed) == skipped.unreadable >= len(BAD) - 5


def test_json_list_and_parquet_keep_bad_rows_with_an_error(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([GOOD, answered(answer=""), GOOD]))
    pq.write_table(pa.Table.from_pylist([GOOD, answered(answer=""), GOOD]), tmp_path / "a.parquet")
    for name, location in (("a.json", f"{tmp_path / 'a.json'}, row 1: "), ("a.parquet", "")):
        read = list(load_source(Source(str(tmp_path / name))))
        assert [row["error"] for row in read] == [
            None,
            f"{location}`answer` is empty: there is nothing to learn",
            None,
        ]


BAD_FILES = {  # their content, and a part of the error
    "cut.json": (b'[{"question": "a", "answer": "b"}, {"que', "cut.json is not JSON in UTF-8, or is truncated"),
    "latin.json": (
        json.dumps([answered(answer="Café")], ensure_ascii=False).encode("latin-1"),
        "latin.json is not JSON",
    ),
    "deep.json": (b"[" * 200_000, "deep.json is not JSON in UTF-8, or is truncated: maximum recursion"),
    "object.json": (b'{"question": "a"}', "object.json should be a list of rows; it is a dict"),
    "bad.json": (
        b'[{"answer": ""}, {"answer": 7}]',
        "none of the 2 rows can be used; the first error: .*bad.json, row 0: `ans",
    ),
    "bad.jsonl": (
        b'\n{"answer": ""}',
        "none of the 1 rows can be used; the first error: .*bad.jsonl, line 2: `answer` is empty",
    ),
    "empty.jsonl": (b"\n", "empty.jsonl has no rows"),
    "rows.csv": (b"video,caption", "must all be of one kind"),
    "at/all.jsonl": (None, "no such file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_load_source_names_a_file_without_usable_rows(tmp_path, name):
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_source(Source(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_byte_order_mark_is_ignored(tmp_path, name):
    (tmp_path / name).write_text(json.dumps([GOOD] if name == "a.json" else GOOD), encoding="utf-8-sig")
    (row,) = load_source(Source(str(tmp_path / name)))
    assert row["error"] is None


def test_cached_rows_are_parsed_again_after_a_change_of_is_address(tmp_path, monkeypatch):
    """`is_address` is in another module than the rest of the parser."""
    source = write_lines(tmp_path / "rows.jsonl", [answered(video="disk:a.mp4")])
    assert load_source(source)[0]["videos"][0]["path"] == str(tmp_path / "disk:a.mp4")
    for module in ("row_formats", "sources"):
        monkeypatch.setattr(f"pllava.data.{module}.is_address", lambda text: text.startswith("disk:"), raising=False)
    assert load_source(source)[0]["videos"][0]["path"] == "disk:a.mp4"


def test_rows_of_pllava_caption_can_be_trained_on(processor, clips, tmp_path):
    """Their absolute `path` is used, whatever `video` is relative to."""
    made = {"prompt": "What happens in it?", "model": "nano"}
    rows = [
        {"video": f"clips/{clips[0].name}", "path": str(clips[0]), "caption": "A bar moves.", **made},
        {"video": "none.mp4", "path": "/clips/none.mp4", "error": "there is no such file"},
        {"video": "gone.mp4", "path": "/clips/gone.mp4", "caption": "It was there.", **made},
        {"video": "beside.mp4", "caption": "A bar.", **made},
    ]
    source = write_lines(tmp_path / "captions.jsonl", rows)
    (tmp_path / "beside.mp4").symlink_to(clips[1])
    report = inspect_source(source, processor, workers=0)
    problems = [(problem.id, problem.media) for problem in report.problems]
    assert problems == [("captions.jsonl#1", None), ("captions.jsonl#2", "/clips/gone.mp4")]
    assert "there is no caption: there is no such file" in report.problems[0].reason
    assert report.summary()["missing"] == 1 and report.values("frames") == [20, 30]
    results = [VideoChatCollator(processor).try_encode(row) for row in load_source(source)]
    assert [isinstance(result, Skipped) for result in results] == [False, True, True, False]
    assert load_source(source)[0]["messages"][0]["content"][1]["text"] == "What happens in it?"
    moved = Source(source.path, media=str(tmp_path / "elsewhere"))
    assert load_source(moved)[0]["videos"][0]["path"] == str(tmp_path / "elsewhere" / "clips" / clips[0].name)


def test_placeholder_in_an_answer_is_text():
    row = {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat?"}]}
    row["conversations"].append({"from": "gpt", "value": "A <video> tag."})
    (_, answer) = parse_row(row, "rows", "0")["messages"]
    assert answer["content"] == [{"type": "text", "text": "A <video> tag."}]
