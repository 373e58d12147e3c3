"""Captioning by several processes, which are killed at any moment, and onto disks that fill up."""

import random
import subprocess
import sys
import time
from collections import Counter

import forked
import psutil
import pytest
from caption_lines import read

from pllava.files import iterate_lines

LAUNCH = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes"]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The captions of one process, by the name of their clip."""
    out = tmp_path_factory.mktemp("alone") / "out.jsonl"
    done = forked.run("pllava", "caption", world, "--out", out)
    assert done.returncode == 0, done.stderr
    return captions(out)


def captions(out):
    """The captions of a file by the name of their clip. Each clip has one line."""
    rows = list(iterate_lines(out))
    assert max(Counter(row["video"] for row in rows).values()) == 1
    return {row["video"]: row["caption"] for row in rows if "caption" in row}


def command(world, out, *options):
    return [sys.executable, "-m", "pllava.caption", str(world), "--out", str(out), "--batch-size", "4", *options]


def kill_group(process):
    """Kill a process and all that it started, one after the other, as the kernel does when memory runs out."""
    children = process.children(recursive=True)
    for each in (process, *children):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs([process, *children], timeout=20)


def test_two_processes_share_the_work(world, alone, tmp_path):
    out = tmp_path / "out.jsonl"
    done = forked.run_group(forked.ranks(2), "pllava", "caption", world, "--out", out, folder=tmp_path)
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    assert "24 captioned, 0 done before, 0 failed" in done[0].stdout and done[1].stdout == ""
    assert captions(out) == alone
    assert {file.name for file in tmp_path.iterdir()} >= {"out.jsonl"} and not list(tmp_path.glob("*part*"))
    assert not list(tmp_path.glob("*claims*"))


@pytest.mark.slow
def test_launcher_shows_failed_clips_without_a_traceback(world, alone, tmp_path):
    broken, out = tmp_path / "broken.mp4", tmp_path / "out.jsonl"
    broken.write_bytes(b"no video")
    arguments = [*LAUNCH, "2", "-m", "pllava.caption", world, broken, "--out", out]
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "24 captioned, 0 done before, 1 failed" in done.stdout
    assert captions(out) == alone


def test_part_of_a_process_that_was_killed_is_merged(world, alone, tmp_path):
    out, part = tmp_path / "out.jsonl", tmp_path / "out.part-1.jsonl"
    assert forked.run("pllava", "caption", world, "--out", out).returncode == 0
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:10]))
    part.write_text("".join(lines[5:20]) + lines[20][:50])  # five twice, and one cut off
    done = forked.run("pllava", "caption", world, "--out", out)
    assert "4 captioned, 20 done before, 0 failed" in done.stdout, done.stdout + done.stderr
    assert captions(out) == alone and not part.exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_no_caption_is_lost_or_made_twice_when_processes_are_killed(world, alone, tmp_path, processes):
    """Ten times, at a random moment, a random process is killed; then the run is finished."""
    out, moments = tmp_path / "out.jsonl", random.Random(processes)
    launch = [*LAUNCH, str(processes)] if processes > 1 else []
    arguments = [sys.executable, *launch, *command(world, out)[1:]]
    seen, counts = {}, []
    for _ in range(10):
        process = psutil.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(4, 14))
        victims = [process, *process.children(recursive=True)]
        moments.choice(victims).kill()
        time.sleep(0.5)
        kill_group(process)
        rows = [row for file in tmp_path.glob("out*.jsonl") for row in iterate_lines(file) if "caption" in row]
        assert seen.keys() <= {row["id"] for row in rows}, "a caption was lost"
        seen = {row["id"]: row["caption"] for row in rows}
        counts.append(len(rows))
    last = subprocess.run(arguments, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert captions(out) == alone
    assert counts == sorted(counts)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_ends_the_run_and_a_later_one_goes_on(world, alone, small_disk):
    out, filler = small_disk / "out.jsonl", small_disk / "filler"
    filler.write_bytes(bytes(48 * 1024))
    full = forked.run("pllava", "caption", world, "--out", out, "--batch-size", 4)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert "Error: The disk is full; all captions so far are kept in" in full.stderr
    written = read(out)  # whole lines only
    assert 0 < len(written) < 24 and len(written) % 4 == 0
    filler.unlink()
    done = forked.run("pllava", "caption", world, "--out", out, "--batch-size", 4)
    assert f"{24 - len(written)} captioned, {len(written)} done before" in done.stdout, done.stderr
    assert captions(out) == alone
