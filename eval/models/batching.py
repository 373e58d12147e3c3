"""Which questions are answered together. It depends on the questions alone, so that each run answers them alike."""

from collections.abc import Sequence

from ..benchmarks.samples import Clip, Sample

BATCHES_IN_WINDOW = 4  # whose clips are held together; a process takes whole windows
BUCKET = 32  # tokens by which the prompts of a batch differ at most
SENTENCE = 8  # words from which a reference lets expect an answer that is longer than a phrase


def plan(samples: Sequence[Sample], lengths: Sequence[int], batch_size: int) -> list[list[list[Sample]]]:
    """
    Windows of batches. Questions about the same clip stay together; in a window they are sorted into batches whose
    prompts, and as the references let expect whose answers, are of about the same length.

    Args:
        lengths: Of the samples' prompts, in tokens.
        batch_size: The largest number of questions in a batch; one sample may have two.
    """
    by_clip: dict[Clip, list[int]] = {}
    for index, sample in enumerate(samples):
        by_clip.setdefault(sample.clip, []).append(index)
    grouped = [index for indices in by_clip.values() for index in indices]
    size = BATCHES_IN_WINDOW * batch_size
    windows = []
    for start in range(0, len(grouped), size):
        window = sorted(
            grouped[start : start + size],
            key=lambda index: (lengths[index] // BUCKET, len(samples[index].reference.split()) >= SENTENCE),
        )
        windows.append(_batches([samples[index] for index in window], batch_size))
    return windows


def _batches(samples: list[Sample], batch_size: int) -> list[list[Sample]]:
    batches: list[list[Sample]] = [[]]
    for sample in samples:
        if batches[-1] and sum(len(each.questions) for each in [*batches[-1], sample]) > batch_size:
            batches.append([])
        batches[-1].append(sample)
    return batches
