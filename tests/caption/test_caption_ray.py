"""`pllava caption --ray`: the captions of one process, made on a cluster whose processes and machines may fail."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import forked
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from transformers import AutoProcessor
from typer.testing import CliRunner

import pllava
from pllava.caption import CaptionStore, ClusterModel, Decode, Job, LocalCaptioner, caption_clips, find_clips
from pllava.files import iterate_lines
from pllava_cli import app

MACHINE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 150_000_000}  # the GPU is only a number to Ray
PROMPTS = ("--prompt", "Describe the video.", "--prompt", "How many shapes are there in all?")
ONE_BY_ONE = (*PROMPTS, "--batch-size", 1)


@pytest.fixture(scope="module", autouse=True)
def ray_environment():
    """Of all processes that the tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture
def cluster():
    """Two machines, each of them some processes."""
    machines = Cluster(initialize_head=True, head_node_args={**MACHINE, "include_dashboard": False})
    machines.add_node(**MACHINE)
    yield machines
    ray.shutdown()
    machines.shutdown()


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The captions of one process, one clip at a time."""
    out = tmp_path_factory.mktemp("alone") / "out.jsonl"
    done = forked.run("pllava", "caption", world, "--out", out, *ONE_BY_ONE)
    assert done.returncode == 0, done.stderr
    return captions(out)


def captions(out):
    """The captions of a file by their id. Each has one line."""
    rows = [row for row in iterate_lines(out) if "caption" in row]
    assert max(Counter(row["id"] for row in rows).values()) == 1
    return {row["id"]: row["caption"] for row in rows}


def start(world, out, address):
    arguments = [sys.executable, "-m", "pllava.caption", world, "--out", out, "--ray", address, *ONE_BY_ONE]
    return psutil.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(out, count):
    deadline = time.monotonic() + 200
    while not out.exists() or len(out.read_bytes().splitlines()) < count:
        assert time.monotonic() < deadline, "no captions"
        time.sleep(0.05)


def comparable(out):
    """The rows of a file without what may differ: the time, and how the clip was named."""
    rows = [{key: row[key] for key in row if key not in ("time", "video")} for row in iterate_lines(out)]
    for row in rows:
        if "error" in row:
            row["error"] = row["error"].replace(f"{out.parent}/", "")
    return sorted(rows, key=lambda row: row.get("id", ""))


@pytest.mark.slow
def test_two_machines_caption_as_one_process(cluster, world, tmp_path):
    """Windows, two prompts, a broken clip, a copy, a clip in a table, and paths relative to the working folder."""
    folder, inside = tmp_path / "clips", sorted(world.iterdir())[8]
    folder.mkdir()
    for clip in sorted(world.iterdir())[:8]:
        shutil.copy(clip, folder)
    shutil.copy(clip, folder / "copy.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    row = {"video": {"bytes": inside.read_bytes(), "path": "inside.mp4"}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "list.parquet")

    def caption(out, *options):
        places = ["clips", "list.parquet", *PROMPTS, "--batch-size", 4, "--window", 1.5]
        return forked.run("pllava", "caption", *places, "--out", out, *options, cwd=tmp_path)

    one, ours = caption("one.jsonl"), caption("ray.jsonl", "--ray", cluster.address)
    assert one.returncode == ours.returncode == 1, ours.stderr
    assert ours.stdout.splitlines()[0] == one.stdout.splitlines()[0].replace("one.jsonl", "ray.jsonl")
    assert "Traceback" not in ours.stderr
    rows = comparable(tmp_path / "ray.jsonl")
    assert rows == comparable(tmp_path / "one.jsonl") and len(rows) > 2 * 9 + 1
    again = caption("ray.jsonl", "--ray", cluster.address)
    assert "0 captioned" in again.stdout and "1 failed" in again.stdout, again.stderr
    assert comparable(tmp_path / "ray.jsonl") == rows


@pytest.mark.slow
def test_killed_model_is_replaced(cluster, world, alone, tmp_path):
    out = tmp_path / "out.jsonl"
    driver = start(world, out, cluster.address)
    wait_for_lines(out, 4)
    actor = next(each for each in psutil.process_iter() if each.name().startswith("ray::MapWork"))
    actor.kill()
    output, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0 and "24 captioned, 0 done before, 0 failed" in output, errors
    assert captions(out) == alone


@pytest.mark.slow
def test_machine_that_goes_away_is_done_without(cluster, world, alone, tmp_path):
    out = tmp_path / "out.jsonl"
    driver = start(world, out, cluster.address)
    wait_for_lines(out, 4)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    output, errors = driver.communicate(timeout=500)
    assert driver.returncode == 0 and "24 captioned, 0 done before, 0 failed" in output, errors
    assert captions(out) == alone


@pytest.mark.slow
def test_run_whose_driver_was_killed_is_continued(cluster, world, alone, tmp_path):
    out = tmp_path / "out.jsonl"
    driver = start(world, out, cluster.address)
    wait_for_lines(out, 4)
    driver.kill()
    driver.communicate()
    kept = captions(out)
    assert 0 < len(kept) < len(alone)
    output, errors = start(world, out, cluster.address).communicate(timeout=300)
    assert "0 failed" in output, errors
    assert captions(out) == alone and captions(out).items() >= kept.items()


class CrashingDecode(Decode):
    """Ends its process at some clips."""

    def __call__(self, clip):
        if clip.video.endswith(("3.mp4", "7.mp4")):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(clip)


@pytest.mark.slow
def test_clip_that_crashes_its_decoder_fails_alone(cluster, world, tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    settings, processor = {"max_new_tokens": 8}, AutoProcessor.from_pretrained(pllava.NANO)

    def load():
        return LocalCaptioner(pllava.load_model(pllava.NANO), processor, settings, batch_size=4)

    source = ClusterModel(load, CrashingDecode(processor, 8), cluster.address)
    store = CaptionStore(tmp_path / "out.jsonl", settings)
    report = caption_clips(Job(find_clips([str(world)], ["What?"]), store, piece=4), source)
    assert (report.captioned, report.failed, report.processes) == (19, 5, 2)
    errors = {row["video"]: row["error"] for row in store.rows() if "error" in row}
    assert all("the worker ended" in error for error in errors.values())
    assert {name[-5:] for name in errors} == {"3.mp4", "7.mp4"}


@pytest.mark.slow
def test_cluster_of_one_run_ends_with_it(world, tmp_path):
    before = {each.pid for each in ray_processes()}
    done = forked.run("pllava", "caption", world, "--out", tmp_path / "out.jsonl", "--ray", "local")
    assert done.returncode == 0 and "24 captioned" in done.stdout, done.stderr
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if not line.startswith("Captioning:")]
    assert len([line for line in lines if line.strip()]) <= 1, lines
    deadline = time.monotonic() + 30
    while {each.pid for each in ray_processes()} - before:
        assert time.monotonic() < deadline, "processes of Ray are left"
        time.sleep(0.5)


def ray_processes():
    return [each for each in psutil.process_iter() if each.name().startswith(("ray::", "raylet", "gcs_server"))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--actors 2", "There is no --ray: leave --actors out"),
        ("--ray auto --endpoint http://nowhere/v1 --model served", "Choose one of --ray and --endpoint"),
        ("--ray auto --workers 2 --device cpu", "leave --device, --workers out"),
        ("--ray ray://head:10001", "does not run over the Ray Client"),
        ("--ray 127.0.0.1:1", "There is no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_wrong_options_are_refused(clips, tmp_path, options, message):
    arguments = ["caption", str(clips[0]), "--out", str(tmp_path / "out.jsonl"), *options.split()]
    refused = CliRunner().invoke(app, arguments, prog_name="pllava")
    assert refused.exit_code in (1, 2) and message in refused.stderr, refused.stderr
