"""A model behind an OpenAI-compatible server (vLLM, SGLang, `transformers serve`), which gets clips as video files."""

import base64
import io
import os
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...media import MediaGate, MediaLimits
from ...media.batch import PUBLIC_HOSTS, gate_for, is_remote
from ...media.places import check_bytes
from ...video_decoding_pllava import load_frames
from ...video_processing_pllava import PllavaVideoProcessor
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..controls_and_sweeps import PLAIN, Variant, choose_frames
from .answerer import Answer, Answerer, Timing, Work
from .openai_client import ChatServer

MIME_SUBTYPES = {".mp4": "mp4", ".webm": "webm", ".mkv": "x-matroska", ".mov": "quicktime", ".avi": "x-msvideo"}
# What the files of these suffixes have at a position, by which those without a name are recognised
SIGNATURES = {".mp4": (4, b"ftyp"), ".mkv": (0, b"\x1aE\xdf\xa3"), ".avi": (8, b"AVI ")}
REQUESTS_PER_CLAIM = 16
ENCODED_FPS = 8  # of clips encoded here, whose frames are spread over the interval that the question is about


class Endpoint(Answerer):
    """
    Args:
        server: The client of the server.
        num_frames: The number of frames of clips that must be encoded here: an interval of a file, a folder of images,
            a GIF, a control, and what is at an http(s) address. Other files are sent unchanged, and the server samples
            them.
        allowed_media_domains: Hosts from which clips are fetched that are http(s) addresses, see [`MediaGate`].

    A file that is sent unchanged is held in memory a few times over, in base64. So it may have as many bytes as the
    gate of a server takes, `MediaLimits().max_bytes`; a larger one is an answer with an error.
    """

    def __init__(self, server: ChatServer, num_frames: int = 32, allowed_media_domains: Sequence[str] = PUBLIC_HOSTS):
        self.server, self.num_frames = server, num_frames
        self.allowed_media_domains = allowed_media_domains
        self.timing = Timing()
        self._sampler = PllavaVideoProcessor(do_resize=False)

    def describe(self, variant: Variant) -> dict[str, Any]:
        if variant.alpha is not None or variant.pooling is not None:
            raise ValueError("A sweep changes the model: it needs the model's weights, not an endpoint")
        return {
            "model": self.server.model,
            "endpoint": self.server.base_url,
            "num_frames": self.num_frames,
            "control": variant.control,
        }

    def answers(self, work: Work) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        """Yield the missing answers one by one, in the order in which the server replies."""
        gate = gate_for((sample.video for sample in work.samples), self.allowed_media_domains)
        pairs = [(variant, sample) for sample in work.samples for variant in work.variants]
        missing = [index for index, pair in enumerate(pairs) if not work.is_done(*pair)]

        def answer(index: int) -> Answer | None:
            claimed = work.claim(index // REQUESTS_PER_CLAIM)
            return self._answer(work.benchmark, gate, *pairs[index]) if claimed else None

        for number, answered in self.server.map(answer, missing):
            if answered is not None:
                variant, sample = pairs[missing[number]]
                yield variant, [(sample, answered)]

    def _answer(self, benchmark: Benchmark, gate: MediaGate | None, variant: Variant, sample: Sample) -> Answer:
        began = time.perf_counter()
        try:
            media = [] if variant.control == "no_video" else [self.video_part(sample, gate, variant)]
        except (OSError, ValueError) as error:  # OSError: from reading a file that is sent unchanged
            return Answer(error=str(error))
        sent = time.perf_counter()
        self.timing.decode_seconds += sent - began
        replies = []
        for question in sample.questions:
            # The server renders the chat template and cannot be made to begin an answer: no primer
            messages = [each for each in benchmark.chat(question, media) if each["role"] != "assistant"]
            replies.append(self.server.complete(messages, temperature=0.0, max_tokens=benchmark.max_new_tokens))
        self.timing.model_seconds += time.perf_counter() - sent
        if failed := next((reply for reply in replies if reply.text is None), None):
            return Answer(error=failed.error)
        truncated = not all(reply.is_whole for reply in replies)
        return Answer(tuple(reply.text.strip() for reply in replies), truncated=truncated)

    def video_part(self, sample: Sample, gate: MediaGate | None, variant: Variant = PLAIN) -> dict[str, Any]:
        """
        Return a sample's clip as a part of a message. Its content is included: the server needs no access to the file.
        A clip at an http(s) address is fetched through the gate.

        Raises:
            OSError, ValueError: if the clip cannot be read.
        """
        is_whole = variant.control is None and (sample.start, sample.end) == (None, None)
        suffix = _find_suffix(sample.video)
        if is_whole and suffix in MIME_SUBTYPES:
            subtype, content = MIME_SUBTYPES[suffix], _read_file(sample.video)
        else:
            subtype, content = "mp4", encode_clip(self._sample_frames(sample, gate, variant))
        url = f"data:video/{subtype};base64,{base64.b64encode(content).decode()}"
        return {"type": "video_url", "video_url": {"url": url}}

    def _sample_frames(self, sample: Sample, gate: MediaGate | None, variant: Variant) -> np.ndarray:
        if is_remote(sample.video):
            frames = self._fetch_frames(sample, gate)
            return frames[choose_frames(variant.control, len(frames), sample.clip)]

        def sampler(metadata: Any) -> np.ndarray:
            count = min(self.num_frames, metadata.total_num_frames)
            indices = self._sampler.sample_frames(metadata, count, start=sample.start, end=sample.end)
            return indices[choose_frames(variant.control, len(indices), sample.clip)]

        return load_frames(sample.video, sampler)[0]

    def _fetch_frames(self, sample: Sample, gate: MediaGate) -> np.ndarray:
        media = gate.read(sample.video)
        with media.file:
            load = partial(gate.load_video, media, self._sampler, start=sample.start, end=sample.end)
            frames, metadata = load(self.num_frames)
            if metadata.total_num_frames < self.num_frames:  # do not repeat the frames of a short clip
                frames, _ = load(metadata.total_num_frames)
        return frames


def _find_suffix(video: str | bytes) -> str | None:
    """Return the suffix of a file's format; None if there is no file, or it has bytes of another format."""
    if isinstance(video, str):
        return Path(video).suffix.lower() if Path(video).is_file() else None
    return next((suffix for suffix, (at, mark) in SIGNATURES.items() if video.startswith(mark, at)), None)


def _read_file(video: str | bytes) -> bytes:
    """Return the bytes of a file that is not too large."""
    is_name = isinstance(video, str)
    check_bytes(video if is_name else "the clip", os.path.getsize(video) if is_name else len(video), MediaLimits())
    return Path(video).read_bytes() if is_name else video


def encode_clip(frames: np.ndarray) -> bytes:
    """
    Encode uint8 RGB frames, `(frames, height, width, 3)`, as an H.264 mp4 of near-lossless quality. Odd heights and
    widths lose one pixel.
    """
    file = io.BytesIO()
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with av.open(file, "w", format="mp4") as container:
        options = {"crf": "12", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=Fraction(ENCODED_FPS), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()
