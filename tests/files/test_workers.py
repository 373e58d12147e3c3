"""The ordered map over worker processes, the evaluation's use of it, and retries."""

import errno
import os
import time
from functools import partial
from types import SimpleNamespace

import av
import pytest
import torch
from video_files import moving_frames, write_video

from pllava import workers
from pllava.eval.models import clip_decoding
from pllava.video_decoding_pllava import load_frames
from pllava.video_source_pllava import VideoDecodeError
from pllava.workers import ordered_map, with_retries


def work(task):
    if task == "crash":
        os.abort()
    if task == "hang":
        time.sleep(60)
    if task == "raise":
        raise KeyError("what was wrong")
    return task, os.getpid()


def run(tasks, num_workers=2, seconds=30.0):
    return ordered_map(work, tasks, num_workers, ahead=4, seconds=seconds, lost=lambda task, reason: (task, reason))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_are_in_the_order_of_the_tasks(num_workers):
    results = list(run(range(20), num_workers))
    assert [result for result, _ in results] == list(range(20))
    assert os.getpid() not in {process for _, process in results} or not num_workers


@pytest.mark.parametrize(("fault", "reason"), [("crash", r"the worker ended (-6)"), ("hang", "more than 1 seconds")])
def test_a_worker_that_crashes_or_hangs_is_replaced(fault, reason):
    results = dict(run([0, fault, 1, fault, 2, 3], seconds=1.0))
    assert list(results) == [0, fault, 1, 2, 3] and reason in results[fault]


def test_an_exception_in_a_worker_is_raised():
    with pytest.raises(RuntimeError, match="what was wrong"):
        list(run([0, "raise"]))


def test_tasks_are_read_only_so_far_ahead():
    read = []
    results = run(read.append(n) or n for n in range(20))
    next(results)
    assert len(read) == 4
    results.close()


def test_workers_end_with_the_map():
    results = run(iter(range(1000)))
    processes = {next(results)[1] for _ in range(10)}
    results.close()
    deadline = time.monotonic() + 10
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_is_alive, processes))


def _is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rsplit(")")[-1].split()[0] != "Z"  # a zombie
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_result_is_received_in_this_process(num_workers):
    def receive(result):
        return *result, os.getpid()

    results = list(ordered_map(work, range(6), num_workers, 4, 30.0, lambda task, reason: (task, reason), receive))
    assert [(task, here) for task, _, here in results] == [(task, os.getpid()) for task in range(6)]


def prepare(source, **options):
    work(source["path"])
    return {"pixel_values_videos": torch.ones(1, 2, 3, 4, 4)}


def test_an_evaluated_clip_that_hangs_or_crashes_has_an_error(monkeypatch):
    monkeypatch.setattr(clip_decoding, "DECODE_TIMEOUT", 1.0)
    processor = SimpleNamespace(video_processor=prepare)
    sources = [{"path": path} for path in ("a.mp4", "hang", "crash", "b.mp4")]
    first, hung, crashed, last = clip_decoding.decode_clips(processor, sources, num_workers=2)
    assert first.pixels.shape == last.pixels.shape == (2, 3, 4, 4) and first.error is last.error is None
    assert hung.pixels is None and hung.error == "hang: it took more than 1 seconds, and was given up"
    assert crashed.pixels is None and crashed.error == "crash: the worker ended (-6)"


# --- retries ---------------------------------------------------------------------------------------------------------


class Response(Exception):
    def __init__(self, code):
        self.code = code


def wrapped(cause):
    error = ValueError("clip.mp4 cannot be read")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (OSError(errno.EIO, "Input/output error"), 4),
        (wrapped(OSError(errno.ESTALE, "Stale file handle")), 4),
        (wrapped(ConnectionResetError("reset")), 4),
        (TimeoutError("timed out"), 4),
        (Response(503), 4),
        (Response(404), 1),
        (FileNotFoundError(errno.ENOENT, "No such file"), 1),
        (wrapped(EOFError("ends early")), 1),
        (
            wrapped(av.FFmpegError(errno.EIO, "Input/output error", "file:/proc/self/mem")),
            4,
        ),  # so does a plain read
        (wrapped(av.FFmpegError(errno.EIO, "Input/output error", f"file:{__file__}")), 1),
        (wrapped(av.FFmpegError(errno.EIO, "Input/output error", "<none>")), 1),
    ],
)
def test_transient_errors_are_retried_and_others_are_not(monkeypatch, error, attempts):
    delays, tried = [], []
    monkeypatch.setattr(workers.time, "sleep", delays.append)

    def read():
        tried.append(1)
        raise error

    with pytest.raises(type(error)):
        with_retries(read)
    assert len(tried) == attempts and delays == sorted(delays) and len(delays) == attempts - 1


def test_a_retry_may_succeed(monkeypatch):
    monkeypatch.setattr(workers, "RETRY_DELAYS", (0, 0))
    errors = [OSError(errno.EIO, "once"), OSError(errno.EIO, "twice")]

    def read(row):
        if errors:
            raise errors.pop()
        return row

    assert with_retries(partial(read, "row")) == "row"


def test_a_damaged_header_is_not_retried(tmp_path, monkeypatch):
    """ffmpeg reports EIO for that of a Matroska file."""
    delays = []
    monkeypatch.setattr(workers.time, "sleep", delays.append)
    file = write_video(tmp_path / "a.mkv", moving_frames(10))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(VideoDecodeError, match="Input/output error"):
        with_retries(load_frames, str(file), 4)
    assert not delays
