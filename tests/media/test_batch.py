"""Batch jobs fetch addresses through the gate; the files that their user names are read as ever."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_folders import benchmark
from chat_server import Reply, chat_server
from hostile_media import Server, content, endless, redirect
from transformers import AutoProcessor
from typer.testing import CliRunner

import pllava
from pllava.eval import PLAIN, ChatServer, Endpoint, Sample
from pllava.eval.models.answerer import Work
from pllava.eval.models.clip_decoding import decode_clips
from pllava.media import MediaLimits
from pllava.media.batch import FILM_LIMITS, gate_for
from pllava.video_decoding_pllava import load_frames
from pllava_cli import app


def rows(file: Path) -> dict[str, dict]:
    return {row["video"]: row for row in map(json.loads, file.read_text().splitlines())}


def test_captions_of_addresses_are_those_of_the_files(clips, tmp_path):
    with Server(clip=content(clips[0].read_bytes()), endless=endless()) as server:
        own = f"http://{server.place}/clip"
        command = ["caption", str(clips[0]), own, f"http://{server.place}/out", "--out", str(tmp_path / "a.jsonl")]
        with Server(clip=content(clips[0].read_bytes())) as inside:
            server.answers["out"] = redirect(f"http://{inside.place}/clip")
            result = CliRunner().invoke(app, [*command, "--allowed-media-domains", server.place])
            assert not inside.requests
    assert result.exit_code == 1 and "2 captioned, 0 done before, 1 failed" in result.stdout
    found = rows(tmp_path / "a.jsonl")
    assert found[own]["caption"] == found[str(clips[0])]["caption"]
    assert found[f"http://{server.place}/out"]["error"] == (
        f"Cannot fetch http://{server.place}/out: files are not fetched from 127.0.0.1. Check the address, or upload "
        "the file."
    )


def test_private_addresses_must_be_allowed(clips, tmp_path):
    with Server(clip=content(clips[0].read_bytes())) as server:
        url = f"http://{server.place}/clip"
        result = CliRunner().invoke(app, ["caption", url, "--out", str(tmp_path / "a.jsonl")])
        assert result.exit_code == 1 and not server.requests
    assert "the address of 127.0.0.1 is not public" in rows(tmp_path / "a.jsonl")[url]["error"]
    wrong = CliRunner().invoke(app, ["caption", url, "--out", "a.jsonl", "--allowed-media-domains", "http://x"])
    assert wrong.exit_code == 1 and "'http://x' does not name a host" in wrong.stderr


def test_no_fork_server_is_started_for_files_alone(clips):
    assert gate_for(map(str, clips)) is None and gate_for([f"file://{clips[0]}", "data:video/mp4;base64,AA"]) is None
    with pytest.raises(ValueError, match="does not name a host"):
        gate_for(map(str, clips), ["http://x"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_decodes_addresses_as_files(clips, num_workers):
    processor = AutoProcessor.from_pretrained(pllava.NANO)
    with Server(clip=content(clips[0].read_bytes())) as server:
        url = f"http://{server.place}/clip"
        gate = gate_for([url], [server.place])
        sources = [{"path": str(clips[0])}, {"path": url}, {"path": url, "start": 1.0, "end": 1.5}]
        sources += [{"path": str(clips[0]), "start": 1.0, "end": 1.5}, {"path": f"http://{server.place}/missing"}]
        decoded = list(decode_clips(processor, sources, num_workers, gate))
    file, fetched, fetched_part, part, missing = decoded
    assert file.pixels.dtype == torch.uint8
    assert fetched.pixels.equal(file.pixels) and fetched_part.pixels.equal(part.pixels)
    assert missing.pixels is None and missing.error.startswith(f"Cannot fetch http://{server.place}/missing: ")


def work(*samples: Sample) -> Work:
    return Work(benchmark("nano"), samples, [PLAIN])


def test_endpoint_gets_the_frames_of_an_address(clips):
    seen = {}

    def answer(request: dict) -> Reply:
        video, question = request["messages"][-1]["content"]
        seen[question["text"][0]] = load_frames(video["video_url"]["url"])[0].astype(int)
        return Reply("yes")

    with chat_server(answer) as (endpoint, _), Server(clip=content(clips[1].read_bytes())) as server:
        url = f"http://{server.place}/clip"
        samples = [Sample("1", "t", str(clips[1]), ("1?",), start=0.0, end=9.0), Sample("2", "t", url, ("2?",))]
        samples += [Sample("3", "t", url, ("3?",), start=0.5, end=1.5), Sample("4", "t", "http://10.0.0.1/a", ("?",))]
        for num_frames in (8, 100):
            model = Endpoint(ChatServer("served", endpoint, 1), num_frames, [server.place])
            answers = {sample.id: reply for _, [(sample, reply)] in model.answers(work(*samples))}
            assert "files are not fetched from 10.0.0.1" in answers.pop("4").error
            assert [reply.error for reply in answers.values()] == [None] * 3
            assert len(seen["1"]) == len(seen["2"]) == len(seen["3"]) == min(num_frames, 30)
            assert np.abs(seen["1"] - seen["2"]).mean() < 5 < np.abs(seen["1"] - seen["3"]).mean()


def test_endpoint_refuses_a_file_above_the_byte_limit(tmp_path):
    film = tmp_path / "film.mp4"
    with film.open("wb") as file:
        file.truncate(MediaLimits().max_bytes + 1)  # takes no place on the disk
    with chat_server(lambda request: Reply("yes")) as (endpoint, stub):
        ((_, [(_, answer)]),) = Endpoint(ChatServer("served", endpoint, 1)).answers(
            work(Sample("1", "t", str(film), ("?",)))
        )
        assert not stub.requests
    assert answer.error == f"Cannot read {film}: it has more than 268,435,456 bytes. Give a smaller file."


def test_limits_of_jobs_let_films_pass():
    assert FILM_LIMITS.max_seconds >= 3 * 3600 and FILM_LIMITS.max_frames >= 3 * 3600 * 60
