"""JSON Lines that another process is writing, repair of a truncated end, and locks."""

import json
import subprocess
import sys

import pytest

from pllava.files import locked, open_to_append, read_lines, read_object

ROWS = [{"id": 1, "text": "eins\u2028zwei"}, {"id": 2, "text": "drei"}]
FIRST, SECOND = (json.dumps(row, ensure_ascii=False).encode() for row in ROWS)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"", 0),
        (FIRST + b"\n" + SECOND + b"\n", 2),
        (FIRST + b"\n" + SECOND, 2),  # without a newline at the end, as some editors save
        (FIRST + b"\r\n\n" + SECOND + b"\n\n", 2),
        (FIRST + b"\n" + SECOND[:-1], 1),
        (FIRST[:20], 0),  # ends in the middle of a character
    ],
)
def test_a_truncated_last_line_is_skipped_and_cut_off_on_appending(tmp_path, content, count):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert read_lines(file) == ROWS[:count]
    assert file.read_bytes() == content
    for number in range(2):
        with open_to_append(file) as lines:
            lines.write(f'{{"id": {number + 3}}}\n')
    assert read_lines(file) == [*ROWS[:count], {"id": 3}, {"id": 4}]


def test_a_missing_file_is_empty_and_created_on_appending(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    assert read_lines(file) == []
    assert not file.parent.exists()
    open_to_append(file).close()
    assert file.read_bytes() == b""


@pytest.mark.parametrize("line", [b"garbage", b"7", b'{"id": ', b"\xff\xfe"])
def test_the_error_names_the_line_that_is_not_an_object(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST + b"\n" + line + b"\n" + SECOND + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not (valid JSON|a JSON object)"):
        read_lines(file)


def test_the_error_names_the_missing_keys(tmp_path):
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
    with pytest.raises(ValueError, match=r"rows\.jsonl is not valid JSON"):
        read_object(file)


def test_a_lock_is_released_after_an_error_and_is_for_one_file(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "new" / "rows.jsonl"):
            with locked(tmp_path / "new" / "others.jsonl"):
                raise ZeroDivisionError


def test_a_file_that_is_not_json_lines_is_not_truncated(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_bytes(b"First\nSecond")
    with pytest.raises(ValueError, match=r"notes\.txt, line 2 is not valid JSON"):
        open_to_append(file)
    assert file.read_bytes() == b"First\nSecond"


def test_reading_while_another_process_writes(tmp_path):
    """The writer's lines arrive in pieces."""
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
