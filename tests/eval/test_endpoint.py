"""A model behind a server: the requests that it gets, and how its replies are stored and scored."""

import base64
import io
import json
from collections import Counter

import av
import benchmark_folders
import forked
import numpy as np
import pytest
from benchmark_folders import Clips, benchmark, write_json
from chat_server import Reply, chat_server, grade
from typer.testing import CliRunner

import pllava
from pllava.eval import CONTROL_VARIANTS, PLAIN, ChatServer, Endpoint, evaluate, parse_sweep, read_samples
from pllava.eval.models.endpoint import encode_clip
from pllava.nano.world import scenes
from pllava_cli import app


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return benchmark_folders.write_all(tmp_path_factory.mktemp("data"))


def decode_request(request):
    """Return the decoded videos of a request's message, and its text."""
    parts = request["messages"][-1]["content"]
    clips = []
    for part in parts[:-1]:
        assert part["type"] == "video_url"
        head, content = part["video_url"]["url"].split(",", 1)
        assert head.startswith("data:video/") and head.endswith(";base64")
        with av.open(io.BytesIO(base64.b64decode(content))) as container:
            clips.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
    return clips, parts[-1]["text"]


def server(url, **options):
    return Endpoint(ChatServer("served", url, **options), num_frames=8)


def test_endpoint_gets_videos_and_is_scored(data, tmp_path):
    """Every kind of clip arrives as a video file; letters count as answers."""
    samples = {sample.questions[0]: sample for sample in read_samples(benchmark("mvbench"), str(data))}
    seen = []

    def answer(request):
        clips, text = decode_request(request)
        question = text.removesuffix(" \nOnly give the best option.")
        assert text != question and request["messages"][0]["role"] == "system"
        seen.append(clips[0])
        sample = samples[question]
        right = sample.options.index(sample.reference)
        return Reply(f" ({'ABCD'[right]})")

    with chat_server(answer) as (url, stub):
        found = evaluate(benchmark("mvbench"), server(url), str(data), tmp_path)[""]
    assert (found["accuracy"], found["coverage"], len(stub.requests)) == (1.0, 1.0, 40)
    assert all(request["temperature"] == 0 and request["max_tokens"] == 100 for request in stub.requests)
    assert all(request["messages"][-1]["role"] == "user" for request in stub.requests)  # no primer
    assert {clip.shape[1:] for clip in seen} == {(scenes.SIZE, scenes.SIZE, 3)}
    # Whole files are sent as they are; parts of them, and folders of frames, as clips of eight frames
    lengths = Counter(len(clip) for clip in seen)
    assert lengths == {scenes.NUM_FRAMES: 30, 8: 10}
    run = json.loads((tmp_path / "mvbench" / "run.json").read_text())
    assert (run["model"], run["endpoint"]) == ("served", url)


def test_servers_share_the_requests(data, tmp_path):
    with (
        chat_server(lambda _: Reply("(A)")) as (url, stub),
        chat_server(lambda _: Reply("(A)")) as (other, other_stub),
    ):
        found = evaluate(benchmark("mvbench"), server(f"{url},{other}"), str(data), tmp_path)[""]
        assert found["coverage"] == 1
        assert len(stub.requests) + len(other_stub.requests) == 40
        assert min(len(stub.requests), len(other_stub.requests)) > 10
    # Another address does not make it another run: nothing is asked again
    found = evaluate(benchmark("mvbench"), server("http://127.0.0.1:9/v1"), str(data), tmp_path)[""]
    assert found["coverage"] == 1


def test_failed_requests_are_counted_and_retried_on_request(data, tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.002)
    broken = {"How": 500}

    def answer(request):
        text = decode_request(request)[1]
        for word, status in broken.items():
            if word in text:
                return Reply(status=status)
        return Reply("red", finish_reason="length")

    with chat_server(answer) as (url, stub):
        found = evaluate(benchmark("msvd_qa"), server(url), str(data), tmp_path)[""]
        failing = sum("How" in sample.questions[0] for sample in read_samples(benchmark("msvd_qa"), str(data)))
        assert 0 < failing < 4
        assert found["unreadable"] == failing and found["truncated"] == 4 - failing
        assert found["coverage"] == 1 - failing / 4
        broken.clear()
        before = len(stub.requests)
        evaluate(benchmark("msvd_qa"), server(url), str(data), tmp_path)
        assert len(stub.requests) == before
        found = evaluate(benchmark("msvd_qa"), server(url), str(data), tmp_path, retry_failed=True)[""]
        assert found["coverage"] == 1 and len(stub.requests) == before + failing


def test_controls_change_the_frames_that_are_sent(tmp_path):
    data = tmp_path / "data"
    Clips(tmp_path / "made").write(data / "1.mp4", 0)
    data.joinpath("questions.jsonl").write_text(
        json.dumps({"video": "1.mp4", "question": "What is it?", "answer": "red"}) + "\n"
    )
    seen = {}

    def answer(request):
        clips, text = decode_request(request)
        seen[tuple(len(clip) for clip in clips)] = clips
        return Reply("red")

    reversed_clips = []
    with chat_server(answer) as (url, stub):
        endpoint = server(url, concurrency=1)
        found = evaluate(benchmark("nano"), endpoint, str(data), tmp_path / "out", [PLAIN, *CONTROL_VARIANTS])
        reversed_clips = [decode_request(request)[0] for request in stub.requests]
    assert all(each["accuracy"] == 1 for each in found.values())
    plain, no_video, one_frame, shuffled, backwards = reversed_clips
    assert (len(plain[0]), no_video, len(one_frame[0])) == (scenes.NUM_FRAMES, [], 1)
    assert len(shuffled[0]) == len(backwards[0]) == 8
    taken = pllava.PllavaVideoProcessor(num_frames=8).sample_frames(
        type("M", (), {"total_num_frames": 32, "fps": 8})()
    )
    error = np.abs(backwards[0].astype(int) - plain[0][taken[::-1]].astype(int)).mean()
    assert error < 3 < np.abs(backwards[0].astype(int) - plain[0][taken].astype(int)).mean()


@pytest.mark.parametrize("swept", ["alpha=1", "pooling=merge"])
def test_sweep_of_an_endpoint_is_refused(data, tmp_path, swept):
    variants = parse_sweep(swept, pllava.PllavaConfig())
    with pytest.raises(ValueError, match="needs the model's weights"):
        evaluate(benchmark("msvd_qa"), server("http://nowhere"), str(data), tmp_path, variants)


def test_encode_clip_keeps_the_frames():
    frames = benchmark_folders.scene(1)[0][:5, :95]  # an odd height
    with av.open(io.BytesIO(encode_clip(frames))) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == (5, 94, 96, 3)
    assert np.abs(decoded.astype(int) - frames[:, :94].astype(int)).mean() < 3


def test_command_evaluates_and_judges_at_servers(data, tmp_path):
    runner = CliRunner()

    def judge(request):
        return Reply(json.dumps({"pred": "no", "score": 1}))

    with chat_server(lambda _: Reply("blue")) as (url, stub), chat_server(judge) as (judge_url, judge_stub):
        arguments = ["eval", "served", "--endpoint", url, "--benchmark", "videoqa", "--data", str(data)]
        arguments += ["--judge", "grader", "--judge-endpoint", judge_url, "--judge-price", "1", "2"]
        finished = runner.invoke(app, [*arguments, "--out", str(tmp_path)])
        assert finished.exit_code == 0, finished.output
        again = runner.invoke(app, [*arguments, "--out", str(tmp_path)])
        assert again.exit_code == 0, again.output
    assert len(stub.requests) == 16 and len(judge_stub.requests) <= 16  # the second run asked nothing
    assert "msvd_qa: accuracy (%) 0.0" in finished.output
    found = json.loads((tmp_path / "tgif_qa" / "metrics.json").read_text())
    assert (found["accuracy"], found["score"], found["judge"]["model"]) == (0, 1, "grader")
    assert found["judge"]["asked"] + found["judge"]["from_cache"] == 4  # in the first run; the second had all grades
    nameless = ["eval", "--endpoint", url, "--data", str(data), "--benchmark", "msvd_qa", "--out", str(tmp_path)]
    finished = runner.invoke(app, nameless)
    assert finished.exit_code == 2 and "Name the model" in finished.output
    for options, message in {
        "--chat-template plain": "for a local model",
        "--adapter mine": "for a local model",
        "--pooling merge": "leave --pooling out",
        "--batch-size 16 --alpha 2": "leave --alpha, --batch-size out",
        "--dtype float16 --load-in-4bit --workers 3": "leave --dtype, --load-in-4bit, --workers out",
        f"--judge-endpoint {judge_url}": "--judge",
    }.items():
        values = ["eval", "served", "--endpoint", url, "--data", str(data), "--benchmark", "msvd_qa", *options.split()]
        finished = runner.invoke(app, [*values, "--out", str(tmp_path)])
        assert finished.exit_code == 2 and message in finished.output, options


def test_processes_share_the_requests_and_one_process_judges(data, tmp_path):
    arguments = ["-m", "pllava.eval", "served", "--benchmark", "vcgbench,mvbench,msvd_qa", "--data", data]
    with chat_server(lambda _: Reply("blue")) as (url, stub), chat_server(grade) as (judge_url, judge_stub):
        arguments += ["--endpoint", url, "--judge", "grader", "--judge-endpoint", judge_url, "--out", tmp_path]
        finished = forked.run_group(forked.ranks(2), *arguments, folder=tmp_path)
    assert [each.returncode for each in finished] == [0, 0], finished
    found = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("vcgbench", "msvd_qa")}
    assert (found["vcgbench"]["score"], found["msvd_qa"]["accuracy"]) == (4, 1)
    assert all(each["coverage"] == 1 and each["time"]["processes"] == 2 for each in found.values())
    assert len(stub.requests) == 6 + 2 * 3 + 40 + 4  # each question is asked by one process
    assert len(judge_stub.requests) == 15 + 4
    for name in ("vcgbench", "mvbench", "msvd_qa"):
        assert [each.stdout.count(f"{name}: ") for each in finished] == [1, 0]


def test_missing_clip_does_not_stop_the_other_requests(tmp_path):
    data = tmp_path / "data"
    benchmark_folders.write_inter4k(data)
    root = data / "Recaption" / "Inter4K"
    (root / "60fps" / "UHD" / "971.mp4").unlink()
    write_json(root / "annotations.json", [{"video_name": str(970 + index)} for index in range(3)])
    with chat_server(lambda _: Reply("A long caption.")) as (url, _):
        found = evaluate(benchmark("inter4k"), server(url), str(data), tmp_path / "out")[""]
    assert (found["evaluated"], found["unreadable"], found["expected"]) == (2, 1, 3)
