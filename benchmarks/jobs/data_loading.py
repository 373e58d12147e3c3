"""Batches of decoded and tokenized examples, beside torch's `DataLoader` with the same collator."""

import time
from functools import partial
from itertools import islice

from measuring import FLOOR, OURS, Contender, Job, Round, Setting, Step
from torch.utils.data import DataLoader
from transformers import AutoProcessor

import pllava
from jobs.worlds import floor, rendered
from pllava.nano.world.rendering import read_questions

BATCH, WORKERS = 8, 2
TORCH = "torch's DataLoader"
CLIPS = {"tiny": 320}
MORE_CLIPS = 512


def examples(setting: Setting) -> list[dict]:
    """One question about each clip, as a conversation."""
    world = rendered(setting, CLIPS.get(setting.size, MORE_CLIPS))
    first = {row["video"]: row for row in reversed(read_questions(world))}
    return [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ],
            "videos": [row["video"]],
        }
        for row in first.values()
    ]


def prepare(name: str, setting: Setting) -> Step:
    from datasets import Dataset

    from pllava.data.mixture import as_mixture
    from pllava.train.loader.collator import VideoChatCollator
    from pllava.train.loader.stream import RowStream
    from pllava.train.loader.stream_loader import StreamLoader

    rows = examples(setting)
    collator = VideoChatCollator(AutoProcessor.from_pretrained(pllava.NANO), sampling="uniform")
    batches = len(rows) // BATCH

    def run() -> Round:
        if name == OURS:
            stream = RowStream(as_mixture(Dataset.from_list(rows)), seed=0, buffer_size=len(rows))
            loader = StreamLoader(stream, collator, BATCH, WORKERS)
        else:
            loader = DataLoader(rows, BATCH, shuffle=True, num_workers=WORKERS, collate_fn=collator)
        times, count = [], 0
        for batch in islice(loader, batches):
            if name == OURS:
                collator.to_device(batch)  # as the trainer does; the other loader's batches are normalised already
            times.append(time.perf_counter())
            count += len(batch["input_ids"])
        # As if the first batch, which waits for the workers to start, took as long as the others
        return {"seconds": (times[-1] - times[0]) * batches / (batches - 1), "result": f"{count} examples"}

    return Step(run)


def cases(setting: Setting) -> dict[str, dict[str, Contender]]:
    contenders = {OURS: partial(prepare, OURS), TORCH: partial(prepare, TORCH)}
    clips = CLIPS.get(setting.size, MORE_CLIPS)
    return {f"{clips} clips, {WORKERS} workers": {FLOOR: partial(floor, clips), **contenders}}


JOB = Job(
    "Data loading: batches of eight examples about clips of nano's world, decoded and tokenized by two workers, once "
    "these have started. The limit (floor) decodes each clip once, shared by all cores.",
    "floor",
    cases,
    slow={
        OURS: "These clips are so short that resizing and tokenizing take most of the time.",
        TORCH: "A worker sends each example on its own, so that one that crashes costs an example and not the run. "
        "Beside clips as short as these, that is seen.",
    },
)
