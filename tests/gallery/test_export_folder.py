"""An exported gallery as a folder: what is in it, what is kept, what is refused, and the clips."""

import json
import os
import re
import shutil
from pathlib import Path

import av
import pytest
from gallery_export import export, read_gallery, run
from typer.testing import CliRunner
from video_files import decode_all, moving_frames, write_video

from pllava.gallery import exporting, frames
from pllava.gallery.exporting import export_gallery
from pllava_cli import app


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def move_clips(results: Path, *names: str, to: Path) -> None:
    """Let results name clips by their names below another folder, which has all of them."""
    for file in results.rglob("predictions.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["video"] = str(to / Path(row["video"]).name)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def moved(copied):
    """Results of nano's world whose clips a test may change."""
    move_clips(copied.nano, to=copied.data / "world" / "clips")
    return copied


def test_nothing_names_this_computer(evaluated, site, tmp_path):
    """Results have a model in a local folder, missing clips, parts, and a judge; strips have descriptions."""
    folder = tmp_path / "gallery"
    results = [evaluated.nano, evaluated.fewer, evaluated.nano / "nano" / "shuffled", evaluated.published]
    export(folder, site, *results, clips=True, chat="http://127.0.0.1:7860")
    written = files_of(folder)
    secrets = {str(evaluated.data.parent), str(tmp_path), str(Path(exporting.__file__).parents[1])}
    secrets |= {f"/{part}/" for part in (*evaluated.data.parts[1:], *Path(exporting.__file__).parts[1:-2])}
    secrets -= {"/data/"}
    for name, content in written.items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)
    assert any(name.startswith("clips/") for name in written) and any(name.startswith("frames/") for name in written)


def test_large_galleries_fit_into_the_hubs_folders(evaluated, site, tmp_path):
    export(tmp_path, site, evaluated.nano, clips=True)
    names = [name for name in files_of(tmp_path) if name.startswith(("frames/", "clips/"))]
    assert names and all(
        re.fullmatch(r"(frames|clips)/([0-9a-f]{2})/\2[0-9a-f]{62}\.(webp|mp4)", name) for name in names
    )


def test_export_goes_on_where_it_stopped(evaluated, site, tmp_path, monkeypatch):
    folder = tmp_path / "gallery"

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting.Gallery, "describe", killed)
        with pytest.raises(KeyboardInterrupt):
            export_gallery([evaluated.nano], folder, site=site)
    made = files_of(folder)
    assert read_gallery(folder)["benchmarks"] == [] and "not complete" in read_gallery(folder)["title"]
    assert len(made) == 1 + 4
    monkeypatch.setattr(frames, "load_frames", None)  # nothing is decoded again
    monkeypatch.setattr(frames, "ordered_map", lambda function, tasks, *_: map(function, tasks))  # in this process
    export(folder, site, evaluated.nano)
    complete = files_of(folder)
    assert {name: content for name, content in complete.items() if name in made and "frames" in name} == {
        name: content for name, content in made.items() if "frames" in name
    }
    assert len(read_gallery(folder)["benchmarks"]) == 1


def test_next_export_replaces_what_is_the_gallerys_only(evaluated, site, tmp_path):
    export(tmp_path, site, evaluated.nano, evaluated.fewer, clips=True)
    before = files_of(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "frames" / "ab").mkdir(exist_ok=True)
    (tmp_path / "frames" / "ab" / "mine.webp").write_text("mine")
    export(tmp_path, site, evaluated.nano)
    after = files_of(tmp_path)
    assert after.pop("README.md") == after.pop("frames/ab/mine.webp") == b"mine"
    assert after.keys() < before.keys()
    assert not any(name.startswith("clips/") for name in after) and not list((tmp_path / "clips").iterdir())
    used = {clip["strip"]["file"] for clip in read_gallery(tmp_path)["benchmarks"][0]["clips"]}
    assert {name for name in after if name.startswith("frames/")} == used


def test_changed_clip_gets_a_new_strip(moved, site, tmp_path):
    first = export(tmp_path / "gallery", site, moved.nano)["nano"]["clips"]
    clips = sorted((moved.data / "world" / "clips").iterdir())
    shutil.copyfile(clips[1], clips[0])
    second = export(tmp_path / "gallery", site, moved.nano)["nano"]["clips"]
    assert [a["strip"]["file"] == b["strip"]["file"] for a, b in zip(first, second, strict=True)] == [
        False,
        *[True] * 3,
    ]
    assert second[0]["strip"] == second[1]["strip"]


def test_missing_and_broken_clips_are_problems(moved, site, tmp_path, monkeypatch):
    """They are counted and shown; readable frames of a damaged clip are shown as well."""
    clips = sorted((moved.data / "world" / "clips").iterdir())
    clips[0].unlink()
    clips[1].write_bytes(b"no video")
    write_video(clips[2], moving_frames(40), container_options={"movflags": "faststart"}, g=8)
    os.truncate(clips[2], clips[2].stat().st_size * 2 // 3)
    done = export_gallery([moved.nano], tmp_path / "gallery", clips=True, site=site)
    missing, broken, cut, good = read_gallery(tmp_path / "gallery")["benchmarks"][0]["clips"]
    assert missing["problem"] == "The clip cannot be read: No such file or directory."
    assert broken["problem"].startswith("Cannot decode the clip: ")
    assert missing["strip"] is broken["strip"] is missing["video"] is broken["video"] is None
    assert good["problem"] is None
    assert done.problems.keys() == {clip.name for clip in clips[:3]} and done.clips == 4
    assert re.fullmatch(r"The clip is damaged or ends early: \d+ of 40 frames can be read.*", cut["problem"])
    assert cut["strip"]["count"] == 16 and cut["video"]
    monkeypatch.setattr(exporting.export_gallery, "__defaults__", (False, None, site))
    finished = CliRunner().invoke(app, ["gallery", str(moved.nano), "--export", str(tmp_path / "gallery")])
    assert finished.exit_code == 0
    assert f"{clips[0].name}: The clip cannot be read: No such file or directory." in finished.stderr
    assert "Clips with a problem: 3. The page shows what it is" in finished.stderr
    assert re.search(r"\d+ samples, 1 run, 4 clips; 0\.\d MB in 5 files\. Open \S+index\.html", finished.stdout)


def test_file_that_kills_its_worker_is_a_problem(moved, site, tmp_path, monkeypatch):
    real = frames._decode

    def crash(clip):
        if clip.name == "00002.mp4":
            os._exit(9)
        return real(clip)

    monkeypatch.setattr(frames, "_decode", crash)
    clips = export(tmp_path / "gallery", site, moved.nano)["nano"]["clips"]
    assert [clip["problem"] for clip in clips] == [None, None, "The clip cannot be read: the worker ended (9).", None]


def test_clips_are_playable(evaluated, site, tmp_path):
    """H.264 and VP9 are copied; other codecs, folders and parts of clips are encoded, and begin where the data say."""
    benchmarks = export(tmp_path, site, evaluated.published, evaluated.nano, clips=True)
    (plain, *_) = benchmarks["nano"]["clips"]
    source = evaluated.data / "world" / "clips" / plain["name"]
    assert (tmp_path / plain["video"]).read_bytes() == source.read_bytes() and plain["video_start"] == 0
    seen = set()
    for clip in [clip for benchmark in benchmarks.values() for clip in benchmark["clips"] if clip["strip"]]:
        with av.open(str(tmp_path / clip["video"])) as container:
            video = container.streams.video[0]
            assert (Path(clip["video"]).suffix, video.codec_context.name) in {(".mp4", "h264"), (".webm", "vp9")}
            assert float(container.duration / av.time_base) == pytest.approx(clip["seconds"], abs=0.4)
        seen.add((Path(clip["name"]).suffix, clip["start"] is not None))
        if clip["start"] is None:
            assert clip["video_start"] == 0
        else:
            assert clip["video_start"] == pytest.approx(clip["start"], abs=0.2) and clip["video"].endswith(".mp4")
    assert seen >= {(".avi", False), (".mp4", False), (".webm", False), (".webm", True), ("", True)}
    part = next(clip for clip in benchmarks["mvbench"]["clips"] if clip["start"] and clip["name"].endswith(".webm"))
    whole = decode_all(next((evaluated.data / "MVBench").rglob(Path(part["name"]).name)))
    shown = decode_all(tmp_path / part["video"])
    first = round(part["video_start"] * 8)  # nano's world has 8 frames per second
    assert abs(shown[0].astype(float) - whole[first]).mean() < abs(shown[0].astype(float) - whole[first + 2]).mean()
    assert len(shown) == round(3.2 * 8) - first + 1


def test_what_is_not_a_gallery_is_refused(evaluated, site, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="has something else than a gallery in it: name a new folder"):
        export_gallery([evaluated.nano], tmp_path, site=site)
    with pytest.raises(ValueError, match="has something else"):
        export_gallery([evaluated.nano], tmp_path / "thesis.txt", site=site)
    assert {name for name in files_of(tmp_path) if not name.endswith(".lock")} == {"thesis.txt"}
    with pytest.raises(ValueError, match="page is not built.*make gallery"):
        export_gallery([evaluated.nano], tmp_path / "new", site=tmp_path)
    assert not (tmp_path / "new").exists()


def test_runs_that_cannot_be_compared_are_refused(evaluated, copied, site, tmp_path):
    run("eval", "nano", "--data", evaluated.data / "world", "--limit", 1, "--out", tmp_path / "few", "--workers", 0)
    with pytest.raises(ValueError, match="cannot be compared: their samples differ"):
        export_gallery([evaluated.nano, tmp_path / "few"], tmp_path / "gallery", site=site)
    with pytest.raises(ValueError, match="passed twice"):
        export_gallery([evaluated.nano, evaluated.nano / "nano"], tmp_path / "gallery", site=site)
    with pytest.raises(ValueError, match="has no results"):
        export_gallery([site], tmp_path / "gallery", site=site)
    for name in ("metrics", "predictions"):  # of judging with other prompts
        file = copied.published / "msvd_qa" / f"{name}.json{'l' * (name == 'predictions')}"
        file.write_text(re.sub(r'("temperature": 0.0, *\s*"prompts": ")\w+', r"\1other", file.read_text()))
    with pytest.raises(ValueError, match="such scores cannot be compared"):
        export_gallery([evaluated.published, copied.published], tmp_path / "gallery", site=site)
    assert not (tmp_path / "gallery" / "frames").exists()  # before any work
    (copied.nano / "nano" / "predictions-1.jsonl").touch()
    with pytest.raises(ValueError, match="a run was stopped in it. Run the same command again"):
        export_gallery([copied.nano], tmp_path / "gallery", site=site)


def test_answers_without_scores_are_shown(evaluated, site, tmp_path):
    """Two runs that nobody judged are put side by side, without figures."""
    for name in ("one", "two"):
        arguments = ["--benchmark", "msvd_qa", "--data", evaluated.data, "--out", tmp_path / name, "--workers", 0]
        run("eval", "nano", *arguments)
    shown = export(tmp_path / "gallery", site, tmp_path / "one", tmp_path / "two")["msvd_qa"]
    assert shown["measure"] is None and shown["comparisons"] == [] and shown["overall"]["runs"] == [None, None]
    assert {answer["status"] for sample in shown["samples"] for answer in sample["answers"]} == {"unscored"}
    assert [each["name"] for each in shown["runs"]] == ["nano (one)", "nano (two)"]
    assert shown["runs"][0]["problems"] == ["not judged"]


def test_folder_with_a_sweep_alone_shows_its_values(evaluated, site, tmp_path):
    arguments = ["--data", evaluated.data / "world", "--out", tmp_path / "swept", "--workers", 0]
    run("eval", "nano", *arguments, "--sweep", "pooling=average-16x3x3,merge")
    shown = export(tmp_path / "gallery", site, tmp_path / "swept")["nano"]
    assert [each["name"] for each in shown["runs"]] == ["nano, pooling=average-16x3x3", "nano, pooling=merge-8x3x3"]
    assert len(shown["comparisons"]) == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--clips"], "--clips is about an --export"),
        (["--export", "x", "--port", "80"], "leave them out with --export"),
        (["--export", "x", "--no-browser"], "leave them out with --export"),
        (["--chat", "file:///etc"], "give the address that `pllava demo` prints"),
    ],
)
def test_options_without_effect_are_refused(options, problem):
    finished = CliRunner().invoke(app, ["gallery", "results", *options])
    assert finished.exit_code == 2 and problem in finished.stderr
