"""A model behind an OpenAI-compatible server (vLLM, SGLang, `transformers serve`); videos travel as videos."""

import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...video_decoding_pllava import load_frames
from ...video_processing_pllava import PllavaVideoProcessor
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.samples import Sample
from ..variants import Variant, choose_frames
from .answer import Answer, Seconds
from .openai_client import ChatServer

TYPES = {".mp4": "mp4", ".webm": "webm", ".mkv": "x-matroska", ".mov": "quicktime", ".avi": "x-msvideo"}
PIECE = 16  # requests that a process takes together
FPS = 8  # of the clips made here, whose frames are spread over the part that is asked about


class Endpoint:
    """
    Args:
        server: What answers.
        num_frames: Of a clip that has to be made: a part of a file, a folder of images, a GIF, a control. Others are
            sent as they are, and the server samples them.
    """

    def __init__(self, server: ChatServer, num_frames: int = 32):
        self.server, self.num_frames = server, num_frames
        self.seconds = Seconds()
        self._sampler = PllavaVideoProcessor()

    def describe(self, variant: Variant) -> dict[str, Any]:
        """
        Raises:
            ValueError: if the variant is a setting of the model, which is out of reach here.
        """
        if variant.alpha is not None or variant.pooling_shape is not None:
            raise ValueError("A sweep sets the model itself: it needs its weights, not an endpoint")
        return {
            "model": self.server.model,
            "endpoint": self.server.base_url,
            "num_frames": self.num_frames,
            "control": variant.control,
        }

    def answers(
        self,
        benchmark: Benchmark,
        samples: Sequence[Sample],
        variants: Sequence[Variant],
        is_done: Callable[[Variant, Sample], bool],
        take: Callable[[int], bool] = lambda piece: True,
    ) -> Iterator[tuple[Variant, list[tuple[Sample, Answer]]]]:
        """
        One by one as they come, the answers that are not there yet.

        Args:
            take: Whether this process is the one to do a piece of the work, by its number.
        """
        asked = [(variant, sample) for sample in samples for variant in variants]

        def answer(place: int) -> Answer | None:
            return self._answer(benchmark, *asked[place]) if take(place // PIECE) else None

        todo = [place for place, (variant, sample) in enumerate(asked) if not is_done(variant, sample)]
        for number, answered in self.server.map(answer, todo):
            if answered is not None:
                variant, sample = asked[todo[number]]
                yield variant, [(sample, answered)]

    def _answer(self, benchmark: Benchmark, variant: Variant, sample: Sample) -> Answer:
        began = time.perf_counter()
        try:
            media = [] if variant.control == "no_video" else [self._media(sample, variant)]
        except (OSError, ValueError) as error:  # OSError: of a file that is sent as it is
            return Answer(error=str(error))
        sent = time.perf_counter()
        self.seconds.decode += sent - began
        replies = [
            self.server.complete(
                self._messages(benchmark, question, media), temperature=0.0, max_tokens=benchmark.max_new_tokens
            )
            for question in sample.questions
        ]
        self.seconds.model += time.perf_counter() - sent
        if failed := next((reply for reply in replies if reply.text is None), None):
            return Answer(error=failed.error)
        return Answer(tuple(reply.text.strip() for reply in replies), truncated=not all(r.is_whole for r in replies))

    def _messages(self, benchmark: Benchmark, question: str, media: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The server renders the chat; it cannot be made to begin an answer, so that the primer is left out."""
        return [message for message in benchmark.chat(question, media) if message["role"] != "assistant"]

    def _media(self, sample: Sample, variant: Variant) -> dict[str, Any]:
        """The clip as a part of a message, its content in it: the server needs no access to the file."""
        path = Path(sample.video)
        if variant.control is None and sample.start is None and path.is_file() and path.suffix.lower() in TYPES:
            kind, content = TYPES[path.suffix.lower()], path.read_bytes()
        else:
            kind, content = "mp4", encode_clip(self._frames(sample, variant))
        url = f"data:video/{kind};base64,{base64.b64encode(content).decode()}"
        return {"type": "video_url", "video_url": {"url": url}}

    def _frames(self, sample: Sample, variant: Variant) -> np.ndarray:
        def sampler(metadata: Any) -> np.ndarray:
            count = min(self.num_frames, metadata.total_num_frames)
            indices = self._sampler.sample_frames(metadata, count, start=sample.start, end=sample.end)
            return indices[choose_frames(variant.control, len(indices), sample.clip)]

        return load_frames(sample.video, sampler)[0]


def encode_clip(frames: np.ndarray) -> bytes:
    """`(frames, height, width, 3)` uint8 RGB as an H.264 mp4, nearly without loss; odd sides lose a pixel."""
    file = io.BytesIO()
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "12", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()
