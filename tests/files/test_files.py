"""JSON Lines: read beside the process that writes them, and repaired by that process only."""

import json
import subprocess
import sys

import pytest

from pllava.files import held, open_to_append, read_lines, read_object

ROWS = [{"id": 1, "text": "eins\u2028zwei"}, {"id": 2, "text": "drei"}]
FIRST, SECOND = (json.dumps(row, ensure_ascii=False).encode() for row in ROWS)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"", 0),
        (FIRST + b"\n" + SECOND + b"\n", 2),
        (FIRST + b"\n" + SECOND, 2),  # as editors and other programs end a file
        (FIRST + b"\r\n\n" + SECOND + b"\n\n", 2),
        (FIRST + b"\n" + SECOND[:-1], 1),
        (FIRST[:20], 0),  # in the middle of a character, too
    ],
)
def test_the_end_of_a_file(tmp_path, content, count):
    """Whole lines count. Reading changes nothing; who appends keeps what is whole and drops what is torn."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert read_lines(file) == ROWS[:count]
    assert file.read_bytes() == content
    for number in range(2):
        with open_to_append(file) as lines:
            lines.write(f'{{"id": {number + 3}}}\n')
    assert read_lines(file) == [*ROWS[:count], {"id": 3}, {"id": 4}]


def test_files_that_are_not_there_yet(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    assert read_lines(file) == []
    assert not file.parent.exists()
    open_to_append(file).close()
    assert file.read_bytes() == b""


@pytest.mark.parametrize("line", [b"garbage", b"7", b'{"id": ', b"\xff\xfe"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST + b"\n" + line + b"\n" + SECOND + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is no JSON"):
        read_lines(file)


def test_an_object_lacks_what_it_must_have(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST + b"\n" + SECOND)
    assert read_lines(file, "id", "text") == ROWS
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1 lacks 'key', 'reply': it has \['id', 'text'\]"):
        read_lines(file, "id", "key", "reply")
    file.write_bytes(FIRST)
    assert read_object(file, "id") == ROWS[0]
    with pytest.raises(ValueError, match=r"rows\.jsonl lacks 'key'"):
        read_object(file, "key")
    file.write_bytes(FIRST[:-1])
    with pytest.raises(ValueError, match=r"rows\.jsonl is no JSON"):
        read_object(file)


def test_what_is_held_is_free_again(tmp_path):
    """When its holder is done, by an error, too; what is beside it is free all the time."""
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), held(tmp_path / "new" / "rows.jsonl"):
            with held(tmp_path / "new" / "others.jsonl"):
                raise ZeroDivisionError


def test_a_file_of_another_kind_is_not_cut(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_bytes(b"First\nSecond")
    with pytest.raises(ValueError, match=r"notes\.txt, line 2 is no JSON"):
        open_to_append(file)
    assert file.read_bytes() == b"First\nSecond"


def test_reading_beside_a_writer(tmp_path):
    """A writer in another process, whose lines arrive in pieces, loses none to whoever reads meanwhile."""
    file, count = tmp_path / "rows.jsonl", 200
    program = (
        "import json, sys, time\n"
        "with open(sys.argv[1], 'a') as lines:\n"
        f"    for number in range({count}):\n"
        "        line = json.dumps({'id': number, 'text': 'x' * 100})\n"
        "        for piece in (line[:50], line[50:], chr(10)):\n"
        "            lines.write(piece); lines.flush(); time.sleep(0.0005)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(file)])
    seen = [0]
    while writer.poll() is None:
        rows = read_lines(file)
        assert [row["id"] for row in rows] == list(range(len(rows)))
        seen.append(len(rows))
    assert writer.returncode == 0
    assert seen == sorted(seen) and len(set(seen)) > 2
    assert [row["id"] for row in read_lines(file)] == list(range(count))
