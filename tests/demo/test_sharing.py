"""Shared conversations: kept whole, found by their ids only, for a time, and within limits."""

import json
import re
import threading

import pytest

from pllava.demo import sharing
from pllava.demo.conversation import Answer, Medium, Turn
from pllava.demo.sharing import Shelf


@pytest.fixture
def turns(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    media = []
    for folder in ("one", "two"):
        file, shown = tmp_path / folder / "clip.avi", tmp_path / folder / "clip.mp4"
        file.write_bytes(f"video {folder}".encode())
        shown.write_bytes(f"shown {folder}".encode())
        media.append(Medium(str(file), "video", "clip.avi", str(shown), start=1.5, truths={"Why?": "so"}))
    answers = (Answer("first", 4.0, 10, 3, 0.1, 0.4, "end"), Answer("second", 32.0, 10, 3, 0.1, 0.4, "stopped"))
    return [Turn("كم؟", tuple(media), answers, truth="so"), Turn("And now?", (), (Answer("nothing", ended="end"),))]


def test_conversation_comes_back_with_its_media(tmp_path, turns):
    shelf = Shelf(tmp_path / "shared")
    name = shelf.store(turns)
    assert re.fullmatch(r"[0-9a-f]{8}-[\w-]{22}", name) and name != shelf.store(turns)
    loaded = shelf.load(name, tmp_path / "uploads")
    assert [(turn.question, turn.answers, turn.truth) for turn in loaded] == [
        (turn.question, turn.answers, turn.truth) for turn in turns
    ]
    for medium, original in zip(loaded[0].media, turns[0].media, strict=True):
        assert (medium.kind, medium.name, medium.start, medium.truths) == ("video", "clip.avi", 1.5, {"Why?": "so"})
        for path, before in ((medium.path, original.path), (medium.shown, original.shown)):
            assert path.startswith(str(tmp_path / "uploads")) and open(path).read() == open(before).read()


@pytest.mark.parametrize(
    "name", ["", "..", "../shared", "a" * 31, "6b0942fd-" + "a" * 22, "6b0942fd-" + "a" * 21 + "/", "."]
)
def test_other_names_lead_nowhere(tmp_path, turns, name):
    shelf = Shelf(tmp_path / "shared", max_days=1e6)
    shelf.store(turns)
    with pytest.raises(ValueError, match="no such conversation"):
        shelf.load(name, tmp_path / "uploads")
    assert not (tmp_path / "uploads").exists()


def test_conversations_expire_and_say_so(tmp_path, turns, monkeypatch):
    shelf = Shelf(tmp_path / "shared", max_days=30)
    name = shelf.store(turns)
    now = sharing.time.time()
    monkeypatch.setattr(sharing.time, "time", lambda: now + 29 * 86_400)
    assert shelf.load(name, tmp_path / "uploads")
    monkeypatch.setattr(sharing.time, "time", lambda: now + 31 * 86_400)
    with pytest.raises(ValueError, match="has expired: conversations are kept for 30 days"):
        shelf.load(name, tmp_path / "uploads")
    newer = shelf.store(turns)
    assert [folder.name for folder in (tmp_path / "shared").iterdir()] == [newer]
    with pytest.raises(ValueError, match="has expired"):  # still after its files are gone
        shelf.load(name, tmp_path / "uploads")


def test_limits(tmp_path, turns):
    with pytest.raises(ValueError, match="no answer to share"):
        Shelf(tmp_path / "shared").store([Turn("Why?")])
    with pytest.raises(ValueError, match="has 0 MB of media; up to 0 MB can be shared"):
        Shelf(tmp_path / "shared", max_bytes=30).store(turns)
    shelf = Shelf(tmp_path / "shared", max_total_bytes=1500)
    shelf.store(turns)
    with pytest.raises(ValueError, match="space for shared conversations is full"):
        for _ in range(5):
            shelf.store(turns)


def test_a_conversation_is_there_whole_or_not_at_all(tmp_path, turns, monkeypatch):
    shelf = Shelf(tmp_path / "shared")
    with monkeypatch.context() as patched:
        patched.setattr(sharing.json, "dumps", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shelf.store(turns)
    assert not list((tmp_path / "shared").glob("[!.]*"))
    names = []
    threads = [threading.Thread(target=lambda: names.append(shelf.store(turns))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 8
    for name in names:
        content = (tmp_path / "shared" / name / sharing.FILE).read_text(encoding="utf-8")
        assert str(tmp_path) not in content and json.loads(content)["turns"][0]["question"] == "كم؟"
