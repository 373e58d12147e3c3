"""A conversation about media: its turns, the settings of a question, and the messages that the model gets."""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Medium:
    """
    A video or an image of a conversation.

    Args:
        path: The file that the model reads.
        kind: "video" or "image".
        name: What people call it.
        shown: The file that a browser shows: `path`, or a copy that it can play; None if there is none.
        start, end: Bounds of the part that the model sees, in seconds.
        truths: The true answers to questions about it, for clips of nano's world.
    """

    path: str
    kind: str
    name: str
    shown: str | None = None
    start: float | None = None
    end: float | None = None
    truths: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        if self.start is None and self.end is None:
            return self.name
        return f"{self.name}, {self.start or 0:g} s to {'the end' if self.end is None else f'{self.end:g} s'}"


@dataclass(frozen=True)
class Settings:
    """
    How a question is answered. None stands for what the model was trained with.

    Args:
        num_frames: Frames sampled from each video.
        pooling: How each video becomes fewer tokens, in the notation of [`parse_pooling`].
        temperature: 0 is greedy decoding.
        max_new_tokens: Length limit of the answer.
        system: Text before the conversation.
    """

    num_frames: int | None = None
    pooling: str | None = None
    temperature: float = 0.0
    max_new_tokens: int = 256
    system: str = ""


@dataclass(frozen=True)
class Answer:
    """
    An answer, or what there is of it.

    Args:
        text: Its text.
        alpha: The adapter's strength; None without an adapter.
        tokens_in, tokens_out: Tokens of the prompt and of the answer.
        first_token_seconds: From the question to the first token, without waiting in the queue.
        seconds: From the question to the last token so far.
        ended: "end" (the model ended it), "length" (at the limit) or "stopped"; None while it is being written.
    """

    text: str = ""
    alpha: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    first_token_seconds: float | None = None
    seconds: float = 0.0
    ended: str | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """The speed after the first token; None for an answer of one token."""
        if self.tokens_out < 2 or self.first_token_seconds is None:
            return None
        return (self.tokens_out - 1) / max(self.seconds - self.first_token_seconds, 1e-9)


@dataclass(frozen=True)
class Turn:
    """
    A question with the media that came with it, its answers (one, or two at two alphas), and the true one if it is
    known.
    """

    question: str
    media: tuple[Medium, ...] = ()
    answers: tuple[Answer, ...] = ()
    truth: str | None = None

    def answer_of(self, column: int) -> Answer | None:
        """The answer in a column; the only one is in both."""
        return self.answers[min(column, len(self.answers) - 1)] if self.answers else None


def media_of(turns: list[Turn]) -> list[Medium]:
    """Return the media of the turns, in their order."""
    return [medium for turn in turns for medium in turn.media]


def true_answer(turns: list[Turn], question: str) -> str | None:
    """Return the true answer to a question about the newest medium, if that is a whole one of nano's world."""
    media = media_of(turns)
    if not media or media[-1].start is not None or media[-1].end is not None:
        return None
    return media[-1].truths.get(question.strip())


def cut_newest_video(turns: list[Turn], start: float | None, end: float | None) -> list[Turn]:
    """Return the turns with other bounds of the newest video. Older ones keep theirs."""
    for number in reversed(range(len(turns))):
        media = list(turns[number].media)
        for place in reversed(range(len(media))):
            if media[place].kind == "video":
                media[place] = replace(media[place], start=start, end=end)
                return [*turns[:number], replace(turns[number], media=tuple(media)), *turns[number + 1 :]]
    return turns


def to_messages(turns: list[Turn], system: str, column: int, pixels: list[Any]) -> list[dict[str, Any]]:
    """
    Return the chat as the processor takes it.

    Args:
        turns: The last one is the question to answer; the others have answers.
        column: Which of two answers stands for the model's in earlier turns.
        pixels: The frames of each video and the picture of each image, in the order of `media_of(turns)`.
    """
    messages = [{"role": "system", "content": [{"type": "text", "text": system.strip()}]}] if system.strip() else []
    left = iter(pixels)
    for number, turn in enumerate(turns):
        parts = [{"type": medium.kind, medium.kind: next(left)} for medium in turn.media]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]})
        if number < len(turns) - 1:
            text = turn.answer_of(column).text
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    return messages
