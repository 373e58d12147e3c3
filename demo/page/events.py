"""Which action follows which event of the page, and what the page shows then."""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..actions import MAX_QUESTION, Actions, errors_for_people, read_number
from ..conversation import Medium, Turn, media_of
from . import views
from .layout import Layout

LINK = "(id) => `${location.origin}${location.pathname}?conversation=${id}`"
Update = dict[Any, Any]  # what components show from now on

MAX_POOLING = 100  # characters
WARNING_SECONDS = 20
LEAVE_SECONDS = 0.3  # in which a part of the answer that is on its way arrives, to be replaced
READY = {"submit_btn": True, "stop_btn": False, "value": None}
BUSY = {"submit_btn": False, "stop_btn": False, "value": None}
ANSWERING = {"submit_btn": False, "stop_btn": True}


class Events:
    """
    Args:
        actions: What can be done.
        page: The components.
    """

    def __init__(self, actions: Actions, page: Layout):
        self.actions, self.page = actions, page

    def connect(self, blocks: gr.Blocks) -> None:
        page, quiet = self.page, {"api_visibility": "private", "show_progress": "hidden"}
        talk = [page.turns, page.chat, page.other_chat, page.message]
        insight = [page.seen, page.facts, page.prompt]
        all_parts = [*talk, page.suggestions, page.link, *insight]
        asked = [page.turns, *page.settings]

        questions = [
            (page.message.submit, self._submit, [page.message, *asked]),
            (page.suggestions.click, self._suggest, [page.suggestions, page.message, *asked]),
            (page.chat.example_select, self._example, asked),
            (page.chat.retry, self._retry, asked),
            (page.chat.edit, self._edit, asked),
        ]
        media = {"concurrency_limit": 4, "concurrency_id": "media"}
        model = {"concurrency_limit": 1, "concurrency_id": "model"}
        answers = []
        for trigger, take, inputs in questions:
            taken = trigger(take, inputs, all_parts, **media, **quiet)
            answer = taken.success(self._answer, asked, [*talk, *insight], **model, **quiet)
            answer.then(self._finish, page.turns, talk, queue=False, **quiet)
            answers.append(answer)
        gr.api(self._chat, api_name="chat", **model)

        page.message.stop(self._stop, None, None, queue=False, **quiet)
        page.chat.undo(self._undo, page.turns, talk, queue=False, **quiet)
        clears = [page.clear.click, page.chat.clear, page.other_chat.clear]
        gr.on(clears, self._clear, None, all_parts, cancels=answers, queue=False, **quiet)
        page.roll.click(self._roll, None, all_parts, cancels=answers, queue=False, **quiet)
        page.recorder.stop_recording(self._attach, [page.recorder, page.message], page.message, queue=False, **quiet)
        stored = page.share.click(self._share, page.turns, page.link, **quiet)
        stored.success(None, page.link, page.link, js=LINK, **quiet)
        blocks.load(self._open, None, [*all_parts, *page.settings[:4]], concurrency_limit=None, **quiet)
        if self.actions.engine.alpha is not None:
            alphas = page.settings[-3:]
            changes = [field.change for field in alphas]
            gr.on(changes, self._label, alphas, [page.chat, page.other_chat], queue=False, **quiet)

    # --- questions ---

    def _submit(self, message: dict, request: gr.Request, turns: list[Turn], *values: Any) -> Iterator[Update]:
        yield from self._take(request, turns, message, lambda: self.actions.take(message, turns, values))

    def _suggest(
        self, sample: list, message: dict, request: gr.Request, turns: list[Turn], *values: Any
    ) -> Iterator[Update]:
        message = {"text": sample[0], "files": message["files"]}
        yield from self._take(request, turns, message, lambda: self.actions.take(message, turns, values))

    def _example(self, event: gr.SelectData, request: gr.Request, turns: list[Turn], *values: Any) -> Iterator[Update]:
        message = {"text": event.value["text"], "files": [file["path"] for file in event.value["files"]]}
        yield from self._take(request, turns, message, lambda: self.actions.take(message, turns, values))

    def _retry(self, event: gr.RetryData, request: gr.Request, turns: list[Turn], *values: Any) -> Iterator[Update]:
        yield from self._take(request, turns, None, lambda: self.actions.ask_again(turns, values))

    def _edit(self, event: gr.EditData, request: gr.Request, turns: list[Turn], *values: Any) -> Iterator[Update]:
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        kept, text = turns[: views.turn_of(turns, index) + 1], views.without_marks(event.value)
        yield from self._take(request, turns, None, lambda: self.actions.edit(kept, text, values))

    def _take(
        self, request: gr.Request, turns: list[Turn], message: dict | None, take: Callable[[], list[Turn]]
    ) -> Iterator[Update]:
        """Show a question at once, and then as it was taken; or what is wrong with it, with the question kept."""
        page = self.page
        self.actions.start(_visit(request))
        if message is not None:
            chats = [views.to_chat(turns, column) + views.reading(**message) for column in (0, 1)]
            yield {page.chat: chats[0], page.other_chat: chats[1], page.message: gr.MultimodalTextbox(**BUSY)}
        try:
            turns = take()
        except gr.Error as error:
            gr.Warning(error.message, duration=WARNING_SECONDS)
            yield {**self._talk(turns), page.message: gr.MultimodalTextbox(**{**READY, "value": message})}
            return
        newest = next((turn.media[-1] for turn in reversed(turns) if turn.media), None)
        asked = {turn.question for turn in turns}
        yield {
            **self._talk(turns),
            page.message: gr.MultimodalTextbox(**ANSWERING),
            page.suggestions: self._suggestions(newest, asked),
            page.link: gr.Textbox(visible=False),
        }

    def _answer(self, request: gr.Request, turns: list[Turn], *values: Any) -> Iterator[Update]:
        page, visit = self.page, _visit(request)
        if not turns or turns[-1].answers:  # the question was not taken
            yield {page.turns: turns}
            return
        for grown, seen, prompt in self.actions.answer(turns, visit, values):
            if self.actions.is_left(visit):
                return
            shown = {**self._talk(grown), page.facts: views.facts(grown[-1].answers)}
            if seen is not None:
                shown |= {page.seen: views.frames(seen), page.prompt: views.prompt(prompt)}
            yield shown

    def _finish(self, request: gr.Request, turns: list[Turn]) -> Update:
        """Make the box ready. A question without a whole answer, since the queue was full or it failed, returns."""
        answered = turns and turns[-1].answers and turns[-1].answers[-1].ended
        if self.actions.is_left(_visit(request)) or not turns or answered:
            return {self.page.message: gr.MultimodalTextbox(submit_btn=True, stop_btn=False)}
        return self._undo(turns)

    def _chat(
        self,
        question: str,
        files: list[gr.FileData],
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        alpha: float | None = None,
        pooling: str | None = None,
    ) -> str:
        """Ask one question about uploaded videos and images. The answer is streamed."""
        bounds = ["" if bound is None else str(bound) for bound in (start, end)]
        values = (num_frames, *bounds, pooling or "", temperature, max_new_tokens, "", alpha)
        paths = [file["path"] if isinstance(file, dict) else str(file) for file in files]
        turns = self.actions.take({"text": question, "files": paths}, [], values)
        for grown, _, _ in self.actions.answer(turns, secrets.token_hex(), values):
            if grown[-1].answers:
                yield grown[-1].answers[0].text

    # --- the conversation as a whole ---

    def _talk(self, turns: list[Turn]) -> Update:
        files = {file for medium in media_of(turns) for file in (medium.path, medium.shown) if file}
        self.page.chat.temp_files.update(files)  # what components keep in this set is deleted after a day
        chats = {self.page.chat: views.to_chat(turns), self.page.other_chat: views.to_chat(turns, 1)}
        return {self.page.turns: turns, **chats}

    def _suggestions(self, medium: Medium | None, asked: set[str] = frozenset()) -> gr.Dataset:
        samples = [[question] for question in (medium.truths if medium else ()) if question not in asked]
        return gr.Dataset(samples=samples or [[""]], visible=bool(samples))

    def _undo(self, turns: list[Turn]) -> Update:
        """Take the last question back into the box."""
        *before, last = turns
        message = {"text": last.question, "files": [medium.path for medium in last.media]}
        return {**self._talk(before), self.page.message: gr.MultimodalTextbox(**{**READY, "value": message})}

    def _clear(self, request: gr.Request, medium: Medium | None = None) -> Update:
        """Begin a conversation, with a medium attached and questions about it to choose from."""
        page = self.page
        self.actions.leave(_visit(request))
        time.sleep(LEAVE_SECONDS)
        message = {"text": "", "files": [medium.path] if medium else []}
        return {
            **self._talk([]),
            page.message: gr.MultimodalTextbox(**{**READY, "value": message}),
            page.suggestions: self._suggestions(medium),
            page.link: gr.Textbox(visible=False),
            page.seen: views.frames(self.actions.preview(medium)) if medium else views.NO_FRAMES,
            page.facts: "",
            page.prompt: views.NO_PROMPT,
        }

    def _roll(self, request: gr.Request) -> Update:
        return self._clear(request, self.actions.roll())

    def _stop(self, request: gr.Request) -> None:
        self.actions.stop(_visit(request))

    def _attach(self, recording: str | None, message: dict) -> dict:
        return {**message, "files": [*message["files"], *([recording] if recording else [])]}

    def _share(self, turns: list[Turn]) -> gr.Textbox:
        with errors_for_people():
            return gr.Textbox(value=self.actions.shelf.store(turns), visible=True)

    def _open(self, request: gr.Request) -> Update:
        """Open what the page's address names: a shared conversation, or a medium with a question."""
        page, wanted = self.page, dict(request.query_params)
        shown: Update = {}
        message: dict[str, Any] = {"text": wanted.get("question", "")[:MAX_QUESTION], "files": []}
        try:
            for name, field in zip(("num_frames", "start", "end"), page.settings, strict=False):
                if (number := read_number(name, wanted.get(name, ""))) is not None:
                    shown[field] = int(number) if name == "num_frames" else f"{number:g}"
            if "pooling" in wanted:
                shown[page.settings[3]] = wanted["pooling"][:MAX_POOLING]
            if "conversation" in wanted:
                turns = self.actions.open_shared(wanted["conversation"])
                shown |= {**self._talk(turns), page.facts: views.facts(turns[-1].answers)}
            if "video" in wanted:
                message["files"] = [self.actions.fetch(wanted["video"])]
        except ValueError as error:
            gr.Warning(" ".join(str(error).split()), duration=WARNING_SECONDS)
        if any(message.values()):
            shown[page.message] = message
        return shown or gr.skip()

    def _label(self, alpha: float, compare: bool, other: float) -> tuple[gr.Chatbot, gr.Chatbot]:
        """Name the two chats by their alphas, or hide the second."""
        first = gr.Chatbot(label=f"α = {alpha:g}" if compare else "Conversation", show_label=compare)
        return first, gr.Chatbot(label=f"α = {other:g}", show_label=True, visible=compare)


def _visit(request: gr.Request) -> str:
    """Return the name of a visit to the page. The client chooses its session's, so it is hashed: it names a file."""
    return hashlib.sha256((request.session_hash or "").encode()).hexdigest()
