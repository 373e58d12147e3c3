"""A digest of the frames that a model sees of a benchmark's clips, from the clips' metadata: none is decoded."""

from collections.abc import Sequence
from functools import partial

from tqdm import tqdm
from transformers.video_utils import VideoMetadata

from ...media.decoding import collecting_damages
from ...video_decoding_pllava import load_frames
from ...video_processing_pllava import PllavaVideoProcessor
from ...video_source_pllava import VideoDecodeError
from ...workers import DECODE_TIMEOUT, ordered_map
from ..benchmarks.samples import ClipKey, Sample, digest
from ..models.clip_decoding import CLIPS_AHEAD


def digest_frames(samples: Sequence[Sample], video_processor: PllavaVideoProcessor, num_workers: int) -> str:
    """
    Return a hash of the samples' ids and of the indices of their frames, in their order. It depends on the clips, on
    the processor's `num_frames` and `sampling`, and on where a sub-clip starts and ends.

    Args:
        num_workers: Processes that read the clips; with 0, this one does.
    """
    clips = list(dict.fromkeys(sample.clip for sample in samples))
    find = partial(find_frames, video_processor)
    indices = ordered_map(find, clips, num_workers, CLIPS_AHEAD * num_workers, DECODE_TIMEOUT, lambda *_: None)
    found = dict(zip(clips, tqdm(indices, total=len(clips), desc="Frame indices", unit="clip"), strict=True))
    return digest([[sample.id, found[sample.clip]] for sample in samples])


def find_frames(video_processor: PllavaVideoProcessor, clip: ClipKey) -> list[int] | None:
    """Return the indices of the frames that a processor takes of a clip; None if the clip cannot be read."""
    path, start, end = clip
    taken: list[int] = []

    def sampler(metadata: VideoMetadata) -> list[int]:
        # The last call counts: decoding may yield another number of frames than the packets
        options = {"sampling": video_processor.sampling, "start": start, "end": end}
        taken[:] = video_processor.sample_frames(metadata, **options).tolist()
        return []  # decode none

    try:
        with collecting_damages():
            load_frames(path, sampler)
    except VideoDecodeError:
        return None
    return taken
