"""Captions by a model behind one or several OpenAI-compatible servers."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ...media import MediaGate
from ..clips import Clip, Failed, Row
from ..quality import find_flags
from ..rows import Settings, caption_row, text_hash

if TYPE_CHECKING:
    from ...eval import ChatServer, Endpoint


def served_rows(
    server: "ChatServer", clips: Iterable[Clip | Failed], settings: Settings, gate: MediaGate | None
) -> Iterator[list[Row]]:
    """
    Yield the rows of each clip, in the order in which the servers reply: one for each prompt, with the caption or the
    error. A clip is read once for all prompts. Clips are taken from the iterator as the servers become free.

    Raises:
        ServerError: if no request can succeed.
    """
    from ...eval import Endpoint

    endpoint = Endpoint(server)
    for _, rows in server.map(lambda clip: _caption(endpoint, clip, settings, gate), clips):
        yield rows


def _caption(endpoint: "Endpoint", clip: Clip | Failed, settings: Settings, gate: MediaGate | None) -> list[Row]:
    from ...eval import Sample

    if isinstance(clip, Failed):
        return [clip.row]
    try:
        sample = Sample("", "", clip.load(), clip.prompts, start=clip.start, end=clip.end)
        video = endpoint.video_part(sample, gate)
    except (OSError, ValueError) as error:
        return [Failed(clip, str(error)).row]
    rows = []
    for prompt in clip.prompts:
        messages = [{"role": "user", "content": [video, {"type": "text", "text": prompt}]}]
        reply = endpoint.server.complete(messages, temperature=0.0, max_tokens=settings["max_new_tokens"])
        if reply.text is None:
            return [*rows, Failed(clip, reply.error).row]
        caption = reply.text.strip()
        facts = {"prompt_hash": text_hash(prompt), "flags": find_flags(caption, not reply.is_whole)}
        rows.append(caption_row(clip, prompt, caption, settings, **facts))
    return rows
