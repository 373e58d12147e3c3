"""Conversations, clips and options for the tests of training. Its fixtures are used with `pytest_plugins`."""

import pytest
from datasets import Dataset
from trl import SFTConfig
from video_files import moving_frames, white_png, write_video


def conversation(*turns, media=()):
    messages = []
    for question, answer in turns:
        content = [*({"type": kind} for kind in media), {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        media = ()
    return messages


def sft_config(output, **options):
    defaults = {"max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    fixed = {"report_to": "none", "use_cpu": True, "bf16": False, "warmup_steps": 0, "save_strategy": "no"}
    return SFTConfig(str(output), **{**defaults, **fixed, **options})


@pytest.fixture
def clip(clips):
    return str(clips[0])


@pytest.fixture
def four_clips(clips, tmp_path):
    """Four clips, each with a different word as the answer."""
    fourth = write_video(tmp_path / "fourth.mp4", moving_frames(25, seed=9), fps=10)
    answers = ["red", "white", "left", "three"]
    return Dataset.from_list(
        [
            {"messages": conversation(("What is it?", answer), media=["video"]), "videos": [str(clip)]}
            for clip, answer in zip([*clips, fourth], answers, strict=True)
        ]
    )


CORRUPT = {
    "truncated, index in front": lambda complete: complete[: len(complete) * 2 // 3],
    "a picture of 768 MB": lambda complete: white_png(16000, 16000),
    "no video": lambda complete: b"These are words. " * 50,
    "missing": None,
}


@pytest.fixture
def corrupt_set(tmp_path):
    """40 rows, of which 4 cannot be read for different reasons, and the ids of these."""
    complete = write_video(
        tmp_path / "clip.mp4", moving_frames(40), fps=10, container_options={"movflags": "faststart"}, g=5
    )
    rows, bad = [], []
    for n in range(40):
        video = "clip.mp4"
        if n % 10 == 3:
            change = list(CORRUPT.values())[n // 10]
            video = f"bad-{n}.mp4"
            if change is not None:
                (tmp_path / video).write_bytes(change(complete.read_bytes()))
            bad.append(str(n))
        rows.append({"messages": conversation(("What?", "red"), media=["video"]), "videos": [str(tmp_path / video)]})
        rows[-1] |= {"id": str(n), "source": "mine"}
    return rows, bad
