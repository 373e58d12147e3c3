"""Captions with flags, which are made again, and clips that look alike."""

import json

import pytest
import torch
from caption_lines import read
from video_files import decode_all, moving_frames, write_video

import pllava
from pllava.caption import quality
from pllava.caption.quality import NearestClips, embed, find_flags, find_nearest
from pllava.nano.world.rendering import render


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips of nano's world, with their questions and answers."""
    return render(tmp_path_factory.mktemp("world"), 200, seed=1)


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "truncated", "flags"),
    [
        ("A red ring moves left.", False, []),
        ("", False, ["empty"]),
        ("", True, ["empty", "truncated"]),
        ("The man is walking in", True, ["truncated"]),
        ("the man is " * 30, True, ["truncated", "repetition"]),
        ("the man is " * 5, False, ["repetition"]),
        ("A man walks along the street in the rain. " * 3, False, ["repetition"]),
        ("A man walks along the street in the rain. " * 2, False, []),
        ("ha" * 40, False, ["repetition"]),
        ("红色的圆环向左移动。" * 10, False, ["repetition"]),
        ("A dog and a cat and a bird and a fish and a horse and a cow.", False, []),
        ("First, the man opens the door. Then, the man closes the door. Finally, the man opens the box.", False, []),
    ],
)
def test_flags(caption, truncated, flags):
    assert find_flags(caption.strip(), truncated) == flags


def test_right_captions_have_no_flags(world):
    rows = [json.loads(line) for line in world.read_text().splitlines()]
    captions = [row["answer"] for row in rows if row["question"] == "Describe the video."]
    assert len(captions) == 200 and not any(find_flags(caption, False) for caption in captions)


# --- captions made again ---------------------------------------------------------------------------------------------


def test_flagged_captions_are_made_again_once(caption, clips, tmp_path):
    """The tiny model never ends by itself, so that all its captions are cut off, also the longer ones."""
    assert "flagged: 3 truncated" in caption(*clips).stdout
    first = read(tmp_path / "out.jsonl")
    assert all(row["flags"] == ["truncated"] and "retried" not in row for row in first)
    again = caption(*clips, "--retry-flagged")
    assert "3 captioned, 0 done before" in again.stdout
    second = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in second] == [row["id"] for row in first]
    assert all(row["retried"] and row["flags"] == ["truncated"] for row in second)
    assert [row["caption"] for row in second] == [row["caption"] for row in first], "a second one as bad is not taken"
    assert "0 captioned, 3 done before" in caption(*clips, "--retry-flagged").stdout
    assert read(tmp_path / "out.jsonl") == second


def test_better_caption_replaces_the_flagged_one(caption, world, tmp_path):
    videos = sorted((world.parent / "clips").iterdir())[:4]
    options = ["--model", pllava.NANO, "--max-new-tokens", "13"]
    assert caption(*videos, *options).exit_code == 0
    first = {row["id"]: row for row in read(tmp_path / "out.jsonl")}
    cut = {id for id, row in first.items() if "flags" in row}
    assert 0 < len(cut) < 4, "some captions have 13 tokens, some more"
    finished = caption(*videos, *options, "--retry-flagged")
    assert f"{len(cut)} captioned, {4 - len(cut)} done before" in finished.stdout
    second = {row["id"]: row for row in read(tmp_path / "out.jsonl")}
    assert second.keys() == first.keys() and not any("flags" in row for row in second.values())
    for id, row in second.items():
        if id in cut:
            assert row["retried"] and len(row["caption"]) > len(first[id]["caption"])
        else:
            assert row == first[id]


def test_captions_are_made_again_in_the_run_that_flags_them(caption, clips, tmp_path):
    finished = caption(clips[0], "--retry-flagged", "--prompt", "What?", "--prompt", "Where?")
    assert "flagged: 2 truncated" in finished.stdout
    assert [row["retried"] for row in read(tmp_path / "out.jsonl")] == [True, True]


# --- clips that look alike -------------------------------------------------------------------------------------------


def test_copies_in_another_encoding_are_found(caption, clips, tmp_path):
    """Over two runs; a third clip looks different, and a fourth was captioned without features."""
    again, other = tmp_path / "again.mkv", tmp_path / "other.mp4"
    write_video(again, decode_all(clips[0]), fps=10, crf=30)
    write_video(other, 255 - moving_frames(20, seed=7), fps=10)
    assert caption(clips[2]).exit_code == 0
    finished = caption(clips[0], other, "--near-duplicates", "--prompt", "What?", "--prompt", "Where?")
    assert "1 clips were captioned without --near-duplicates" in finished.stdout
    assert caption(again, "--near-duplicates").exit_code == 0
    rows = {row["video"]: row for row in read(tmp_path / "out.jsonl")}
    assert len(read(tmp_path / "out.jsonl")) == 6
    copy, original, different = (rows[str(each)] for each in (again, clips[0], other))
    assert copy["similar_to"] == str(clips[0]) and original["similar_to"] == str(again)
    assert copy["similarity"] == original["similarity"] > 0.99 and different["similarity"] < copy["similarity"] - 0.05
    assert "similar_to" not in rows[str(clips[2])]
    both = [row["similarity"] for row in read(tmp_path / "out.jsonl") if row["video"] == str(clips[0])]
    assert len(both) == 2 and both[0] == both[1], "for each prompt the same"


def test_nearest_are_found_in_blocks(monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", 7)
    vectors = torch.nn.functional.normalize(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors[29] = vectors[3]
    cosines, nearest = find_nearest(vectors)
    others = (vectors @ vectors.T).fill_diagonal_(-2)
    assert torch.allclose(cosines, others.max(1).values)
    assert torch.allclose(cosines, others[torch.arange(30), nearest])
    assert nearest[29] == 3 and nearest[3] == 29


def test_projection_keeps_angles():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(200, 1, 4096, generator=generator)
    near = 0.95 * tokens + (1 - 0.95**2) ** 0.5 * torch.randn(tokens.shape, generator=generator)
    pairs = [(torch.tensor(embed(one)), torch.tensor(embed(other))) for one, other in zip(tokens, near, strict=True)]
    errors = torch.stack([one @ other for one, other in pairs]) - torch.cosine_similarity(tokens[:, 0], near[:, 0])
    assert errors.abs().max() < 0.05 and errors.std() < 0.02


def test_nothing_and_a_single_clip_have_no_nearest():
    row = {"video": "a.mp4", "sha256": None, "embedding": embed(torch.ones(3, 8))}
    for rows in ([], [row]):
        assert NearestClips(rows).add_to(row) == row
    parts = [{**row, "start": start, "end": start + 2.0} for start in (0.0, 2.0)]
    assert NearestClips(parts).add_to(parts[0])["similar_to"] == "a.mp4 (2 s to 4 s)"
