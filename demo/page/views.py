"""The parts of the page as HTML or chat messages: what was asked and answered, and what the model saw and sent."""

import base64
import io
import re
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from PIL import Image

from ..conversation import Answer, Medium, Turn
from ..engine import Seen

MARK = "\u2060"  # the word joiner
SIDE = 336  # pixels: larger frames are shown smaller
NO_FRAMES = "<p class='hint'>The frames of your clip appear here, exactly as the model sees them.</p>"
NO_PROMPT = "<p class='hint'>The text that the model gets appears here with the next answer.</p>"


def to_chat(turns: list[Turn], column: int = 0) -> list[dict[str, Any]]:
    """Return the messages of a `gr.Chatbot`."""
    return [message for _, message in _messages(turns, column)]


def turn_of(turns: list[Turn], message: int) -> int:
    """Return the number of the turn to which a message of `to_chat` belongs."""
    return _messages(turns, 0)[message][0]


def _messages(turns: list[Turn], column: int) -> list[tuple[int, dict[str, Any]]]:
    # Each file is a message: in one with files, Gradio cannot edit the text
    messages = []
    for number, turn in enumerate(turns):
        messages += [(number, {"role": "user", "content": _file(medium)}) for medium in turn.media]
        messages.append((number, {"role": "user", "content": as_text(turn.question)}))
        answer = turn.answer_of(column)
        if answer is not None and (answer.text or answer.ended):
            messages.append((number, {"role": "assistant", "content": as_text(answer.text) or "(no text)"}))
            if note := _note(answer, turn.truth):
                messages.append((number, {"role": "assistant", "content": gr.HTML(note, render=False)}))
    return messages


def as_text(text: str) -> str:
    """Keep markup in a text from being taken for markup, by an invisible mark. Gradio would drop tags."""
    return re.sub(r"([<&])(?=[A-Za-z/!?#])", rf"\1{MARK}", text)


def without_marks(text: str) -> str:
    return text.replace(MARK, "")


def reading(text: str, files: list[str]) -> list[dict[str, Any]]:
    """Return the messages for a question whose files are still being read."""
    names = [f"Reading {Path(file).name} …" for file in files]
    return [{"role": "user", "content": content} for content in [*names, as_text(text)] if content]


def _file(medium: Medium) -> Any:
    # Not a file of Gradio's, whose images have no alternative text
    label = escape(medium.label)
    if medium.shown is None:
        return gr.HTML(
            f"<p>{label}<br><small>Your browser cannot show it, but the model reads it.</small></p>", render=False
        )
    address = f"gradio_api/file={quote(medium.shown)}"
    if medium.kind == "image" or medium.shown.endswith(".gif"):
        return gr.HTML(f'<img src="{address}" alt="{label}">', render=False)
    video = f'<video src="{address}" aria-label="{label}" controls loop muted playsinline></video>'
    return gr.HTML(video, render=False)


def _note(answer: Answer, truth: str | None) -> str | None:
    """Say at which alpha an answer was given, how it ended and, for nano's world, whether it is the true one."""
    kind, text = "", ""
    if answer.ended == "stopped":
        text = "Stopped."
    elif answer.ended == "length":
        text = f"Cut off after {answer.tokens_out} tokens: raise the length limit in the settings."
    elif answer.ended and truth is not None:
        kind = " right" if answer.text == truth else " wrong"
        text = "Right: this is the true answer." if answer.text == truth else f"The true answer: {truth}"
    alpha = "" if answer.alpha is None else f"<b>α = {answer.alpha:g}</b> "
    return f"<p class='note{kind}'>{alpha}{escape(text)}</p>" if alpha or text else None


def frames(seen: list[Seen]) -> str:
    """Return a strip of the frames of each medium, with their times."""
    return "".join(map(_strip, seen)) or NO_FRAMES


def _strip(seen: Seen) -> str:
    height, width = seen.frames.shape[1:3]
    count = f"{len(seen.frames)} frames of {width} x {height}" if len(seen.frames) > 1 else f"{width} x {height}"
    items = []
    for number, frame in enumerate(seen.frames):
        time = None if seen.times is None else f"{seen.times[number]:.2f} s"
        alt = seen.label if time is None else f"Frame {number + 1}, at {time}"
        caption = f"<figcaption>{time}</figcaption>" if time else ""
        items.append(f'<li><figure><img src="{_data_uri(frame)}" alt="{escape(alt)}">{caption}</figure></li>')
    title = f"<p class='strip-title'><bdi>{escape(seen.label)}</bdi> <span>{count}</span></p>"
    kind = "strip" if len(items) > 1 else "strip single"
    return f"{title}<ol class='{kind}' tabindex='0' aria-label='Frames of {escape(seen.label)}'>{''.join(items)}</ol>"


def _data_uri(frame: Any) -> str:
    image, content = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    lossless = max(image.size) <= SIDE // 2  # small frames are enlarged, which shows losses
    image.save(content, "WEBP", lossless=lossless, quality=80)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def facts(answers: tuple[Answer, ...]) -> str:
    """Return a table of tokens and times, a column an answer."""
    if not answers:
        return ""

    def row(name: str, values: list[str]) -> str:
        return f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"

    rows = [
        row("Tokens in", [f"{answer.tokens_in:,}" for answer in answers]),
        row("Tokens out", [f"{answer.tokens_out:,}" for answer in answers]),
        row("First token", [_or_dash(answer.first_token_seconds, "{:.2f} s") for answer in answers]),
        row("Tokens per second", [_or_dash(answer.tokens_per_second, "{:,.0f}") for answer in answers]),
    ]
    head = ""
    if answers[0].alpha is not None:
        cells = "".join(f"<th scope='col'>α = {answer.alpha:g}</th>" for answer in answers)
        head = f"<thead><tr><td></td>{cells}</tr></thead>"
    return f"<table class='facts'>{head}<tbody>{''.join(rows)}</tbody></table>"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def prompt(text: str) -> str:
    return (
        f"<pre class='prompt' tabindex='0' aria-label='Prompt' dir='auto'>{escape(text)}</pre>" if text else NO_PROMPT
    )
