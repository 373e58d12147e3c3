"""Captions of videos: by a model in this process, or by one behind a server."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from .options import sample_frames

if TYPE_CHECKING:
    import numpy as np

    from pllava import PllavaProcessor, VideoTextToTextPipeline
    from pllava.eval import ChatServer, Endpoint
    from pllava.media import MediaGate

Row = dict[str, Any]  # a line of the output file


def name(video: str) -> Row:
    """Return the beginning of a video's row: its name as it was passed, and a file's absolute path."""
    from pllava.video_source_pllava import is_address

    return {"video": video} if is_address(video) else {"video": video, "path": os.path.abspath(video)}


def _hash(video: str) -> Row:
    from pllava.data.media import content_hash, find_medium

    return {"sha256": content_hash(find_medium(video))}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- in this process -------------------------------------------------------------------------------------------------


def local_captions(
    pipe: "VideoTextToTextPipeline", videos: list[str], request: Row, gate: "MediaGate | None", batch_size: int
) -> Iterator[list[Row]]:
    """Yield the rows of each batch of videos, in order. The row of a video that cannot be read has the "error"."""
    from pllava.workers import DECODE_TIMEOUT, ordered_map

    decode = partial(_decode, pipe.processor, request, gate)
    decoded = ordered_map(decode, videos, 1, 2 * batch_size, DECODE_TIMEOUT, _lost)
    while batch := list(islice(decoded, batch_size)):
        yield _caption_batch(pipe, batch, request)


def _decode(
    processor: "PllavaProcessor", request: Row, gate: "MediaGate | None", video: str
) -> "tuple[Row, np.ndarray | str]":
    """Return the beginning of a video's row with its hash, and its frames, or the error if it cannot be read."""
    from pllava.media import MediaRefused
    from pllava.media.batch import is_remote
    from pllava.video_source_pllava import VideoDecodeError

    clip = request["num_frames"], request.get("start"), request.get("end")
    try:
        if is_remote(video):
            frames, _ = gate.load_video(video, processor.video_processor, *clip)
        else:
            frames = sample_frames(processor, video, *clip)
        return {**name(video), **_hash(video)}, frames
    except (OSError, MediaRefused, VideoDecodeError) as error:
        return name(video), str(error)


def _lost(video: str, reason: str) -> tuple[Row, str]:
    return name(video), f"Cannot decode {video}: {reason}"


def _caption_batch(
    pipe: "VideoTextToTextPipeline", batch: "list[tuple[Row, np.ndarray | str]]", request: Row
) -> list[Row]:
    captions = iter(_generate(pipe, [decoded for _, decoded in batch if not isinstance(decoded, str)], request))
    time = _now()
    return [
        {**row, "error": decoded}
        if isinstance(decoded, str)
        else {**row, "caption": next(captions), **request, "time": time}
        for row, decoded in batch
    ]


def _generate(pipe: "VideoTextToTextPipeline", videos: "list[np.ndarray]", request: Row) -> list[str]:
    from pllava.media import AS_SAMPLED

    if not videos:
        return []
    answers = pipe(
        videos,
        text=request["prompt"],
        batch_size=len(videos),
        max_new_tokens=request["max_new_tokens"],
        generate_kwargs={"do_sample": False},
        processor_kwargs=AS_SAMPLED,
    )
    return [answer[0]["generated_text"].strip() for answer in answers]


# --- behind a server -------------------------------------------------------------------------------------------------


def served_captions(
    server: "ChatServer", videos: list[str], request: Row, gate: "MediaGate | None"
) -> Iterator[list[Row]]:
    """
    Yield the row of each video, in the order in which the server replies. The row of a video that cannot be read, or
    whose request failed, has the "error".

    Raises:
        ServerError: if no request can succeed.
    """
    from pllava.eval import Endpoint

    endpoint = Endpoint(server)
    for _, row in server.map(partial(_caption_at, endpoint, request, gate), videos):
        yield [row]


def _caption_at(endpoint: "Endpoint", request: Row, gate: "MediaGate | None", video: str) -> Row:
    from pllava.eval import Sample

    sample = Sample("", "", video, (request["prompt"],), start=request.get("start"), end=request.get("end"))
    try:
        row = {**name(video), **_hash(video)}
        content = [endpoint.video_part(sample, gate), {"type": "text", "text": request["prompt"]}]
    except (OSError, ValueError) as error:
        return {**name(video), "error": str(error)}
    messages = [{"role": "user", "content": content}]
    reply = endpoint.server.complete(messages, temperature=0.0, max_tokens=request["max_new_tokens"])
    if reply.text is None:
        return {**name(video), "error": reply.error}
    return {**row, "caption": reply.text.strip(), **request, "time": _now()}
