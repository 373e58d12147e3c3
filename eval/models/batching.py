"""Group questions into batches. The batches depend on the questions alone, so that each run gives the same answers."""

from collections.abc import Sequence

from ..benchmarks.samples import ClipKey, Sample

BATCHES_PER_WINDOW = 4  # a window's clips are in memory together, and a process claims whole windows
LENGTH_BUCKET = 32  # the largest difference between prompt lengths in a batch, in tokens
LONG_REFERENCE = 8  # words; a longer reference suggests an answer in sentences


def plan_batches(samples: Sequence[Sample], lengths: Sequence[int], batch_size: int) -> list[list[list[Sample]]]:
    """
    Split the samples into windows of batches. Questions about the same clip share a window. In a window they are
    sorted so that the prompts of a batch, and presumably their answers, have similar lengths.

    Args:
        lengths: The samples' prompt lengths, in tokens.
        batch_size: The largest number of questions in a batch; a sample may have two.
    """
    by_clip: dict[ClipKey, list[int]] = {}
    for index, sample in enumerate(samples):
        by_clip.setdefault(sample.clip, []).append(index)
    grouped = [index for indices in by_clip.values() for index in indices]
    size = BATCHES_PER_WINDOW * batch_size
    windows = []
    for start in range(0, len(grouped), size):
        window = sorted(
            grouped[start : start + size],
            key=lambda index: (
                lengths[index] // LENGTH_BUCKET,
                len(samples[index].reference.split()) >= LONG_REFERENCE,
            ),
        )
        windows.append(_split([samples[index] for index in window], batch_size))
    return windows


def _split(samples: list[Sample], batch_size: int) -> list[list[Sample]]:
    batches: list[list[Sample]] = [[]]
    for sample in samples:
        if batches[-1] and sum(len(each.questions) for each in [*batches[-1], sample]) > batch_size:
            batches.append([])
        batches[-1].append(sample)
    return batches
