"""The page of the chat: its layout, and which action follows which event."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder

from .. import NANO
from ..adapters import plain_model
from ..media import MediaGate, MediaLimits
from ..processing_pllava import PllavaProcessor
from . import views, worlds
from .actions import MAX_QUESTION, Actions, errors_for_people
from .conversation import Medium, Turn, media_of
from .engine import Engine
from .fields import read_number, settings_fields
from .sharing import Shelf

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

HERE = Path(__file__).parent
MAX_WAITING = 20  # questions in the queue
FILE_TYPES = ["video", "image", "file"]  # what browsers offer; any file is taken, and the gate decides
CACHE = (3600, 86_400)  # each hour, uploads that are older than a day are deleted (seconds)
FONT, FONT_MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
LINK = "(id) => `${location.origin}${location.pathname}?conversation=${id}`"
ABOUT_NANO = (
    "<b>nano</b> is a tiny model that knows one thing: a synthetic world of moving shapes. It answers questions about "
    "clips of that world, and nothing else. For real footage, start with a real checkpoint: "
    "<code>pllava demo ORGANISATION/MODEL</code>"
)
ABOUT = (
    "A video model that reads the pooled frames of a clip. It may be wrong: the frames that it saw stand beside its "
    "answers."
)
WELCOME = "Add a video or an image below and ask about it, or start with one of these."


def build_demo(
    model: "PreTrainedModel | PeftModel",
    processor: PllavaProcessor,
    name: str,
    shared: Path,
    about: str | None = None,
    links: MediaGate | None = None,
    limits: MediaLimits | None = None,
    on_gpu: Callable[[Callable], Callable] = lambda function: function,
) -> gr.Blocks:
    """
    Return the page, to be launched with [`launch_options`].

    Args:
        model: From [`load_model`]. With an adapter, its alpha can be set on the page.
        processor: The model's processor.
        name: The model's name, for the heading.
        shared: The folder in which shared conversations are kept.
        about: A sentence about the model, as HTML; by default `ABOUT_NANO` for nano, and `ABOUT` for others.
        links: The gate for media that an address names (`?video=...`); by default it lets nothing through.
        limits: Of uploads.
        on_gpu: Wraps the generator function that uses the model, such as `spaces.GPU(duration=60)`.
    """
    if about is None:
        about = ABOUT_NANO if plain_model(model).config.name_or_path == NANO else ABOUT
    uploads = Path(get_upload_folder())
    limits = limits or MediaLimits()
    gate = MediaGate(allowed_local_media_path=[uploads], limits=limits)
    engine = Engine(model, processor, gate, on_gpu)
    return Page(Actions(engine, gate, uploads, links or MediaGate(), Shelf(shared)), name, about).demo


def launch_options(limits: MediaLimits | None = None) -> dict[str, Any]:
    """Return what `launch` takes: the looks, and the size limit of uploads. Gradio serves no files but uploads."""
    return {
        "theme": theme(),
        "css_paths": [HERE / "page.css"],
        "js": (HERE / "page.js").read_text(encoding="utf-8"),
        "max_file_size": (limits or MediaLimits()).max_bytes,
        "footer_links": ["api", "gradio", "settings"],
        "run_history": False,
        "enable_monitoring": False,
        "show_error": False,
    }


def theme() -> gr.Theme:
    """Gradio's own with calm colours and the system's fonts. Subdued text keeps a contrast of 4.5 to 1."""
    return gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=FONT_MONO).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
    )


class Page:
    def __init__(self, actions: Actions, name: str, about: str):
        self.actions, self.engine = actions, actions.engine
        with gr.Blocks(title=f"PLLaVA chat: {name}", delete_cache=CACHE, analytics_enabled=False) as self.demo:
            self._build(name, about)
            self._connect()
        self.demo.queue(max_size=MAX_WAITING)

    # --- layout ---

    def _build(self, name: str, about: str) -> None:
        self.turns = gr.State([])
        self.stop = gr.State("")  # set when the page is opened
        gr.HTML(f"<header><h1>PLLaVA <span>{escape(name)}</span></h1><p>{about}</p></header>", elem_id="about")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(scale=5, min_width=340, elem_id="talk"):
                with gr.Row(elem_id="chats"):
                    self.chat = self._chatbot("Conversation", examples=self._examples(), placeholder=WELCOME)
                    self.other_chat = self._chatbot("Second answers", visible=False)
                self.suggestions = gr.Dataset(
                    components=["textbox"], samples=[[""]], label="Ask about this clip", elem_id="suggestions",
                    visible=False, type="values",
                )  # fmt: skip
                self.message = gr.MultimodalTextbox(
                    label="Your question",
                    placeholder="Ask about a video or an image",
                    show_label=False,
                    file_count="multiple",
                    file_types=FILE_TYPES,
                    elem_id="message",
                    autofocus=True,
                    max_plain_text_length=MAX_QUESTION,
                    max_lines=8,
                )
                with gr.Row(elem_id="tools"):
                    self.roll = gr.Button("Roll a new clip", size="sm", elem_id="roll")
                    self.share = gr.Button("Share", size="sm", elem_id="share")
                    self.clear = gr.Button("Clear", size="sm", elem_id="clear")
                self.link = gr.Textbox(
                    label="Link to this conversation",
                    visible=False,
                    interactive=False,
                    buttons=["copy"],
                    elem_id="link",
                )
                with gr.Accordion("Record a video", open=False, elem_id="record"):
                    # Without sound, or mirrored, Gradio would need the program ffmpeg
                    camera = gr.WebcamOptions(mirror=False)
                    self.recorder = gr.Video(
                        label="Camera", sources=["webcam"], webcam_options=camera, include_audio=True, height=280
                    )
            with gr.Column(scale=3, min_width=320, elem_id="insight"):
                gr.HTML("<h2>What the model saw</h2>")
                self.seen = gr.HTML(views.NO_FRAMES, elem_id="seen")
                self.facts = gr.HTML("", elem_id="facts")
                with gr.Accordion("The prompt as it was sent", open=False, elem_id="prompt"):
                    self.prompt = gr.HTML(views.NO_PROMPT)
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    self.settings = settings_fields(self.engine)

    def _chatbot(self, label: str, **options: Any) -> gr.Chatbot:
        return gr.Chatbot(
            label=label, show_label=False, height="min(60vh, 620px)", editable="user", buttons=["copy", "copy_all"],
            render_markdown=False, feedback_options=None,
            group_consecutive_messages=False, **options,
        )  # fmt: skip

    def _examples(self) -> list[dict[str, Any]]:
        folder = self.actions.uploads / "worlds"
        examples: list[dict[str, Any]] = []
        for number, kind in worlds.EXAMPLES.items():
            medium, question = worlds.example(folder, number, kind)
            poster = worlds.picture(folder, number)
            files = [{"path": medium.path, "orig_name": medium.name}]
            examples.append({"text": question, "files": files, "icon": poster.path, "display_text": question})
        return examples

    # --- events ---

    def _connect(self) -> None:
        options = {"api_visibility": "private", "show_progress": "hidden"}
        shown = [self.turns, self.chat, self.other_chat]
        taken = [*shown, self.message, self.suggestions, self.link]
        about_answer = [*shown, self.seen, self.facts, self.prompt]
        triggers = [
            (self.message.submit, self._submit, [self.message, self.turns, *self.settings]),
            (self.suggestions.click, self._suggest, [self.suggestions, self.message, self.turns, *self.settings]),
            (self.chat.example_select, self._example, [self.turns, *self.settings]),
            (self.chat.retry, self._retry, [self.turns, *self.settings]),
            (self.chat.edit, self._edit, [self.turns, *self.settings]),
        ]
        for trigger, take, inputs in triggers:
            trigger(take, inputs, taken, concurrency_limit=4, concurrency_id="media", **options).success(
                self._answer, [self.turns, self.stop, *self.settings], about_answer,
                concurrency_limit=1, concurrency_id="model", **options,
            ).then(lambda: self._idle(), None, self.message, queue=False, **options)  # fmt: skip
        gr.api(self._chat, api_name="chat", concurrency_limit=1, concurrency_id="model")
        quick = {"queue": False, **options}
        self.message.stop(self.actions.stop, self.stop, None, **quick)
        self.chat.undo(self._undo, [self.turns], [*shown, self.message], **quick)
        gr.on([self.clear.click, self.chat.clear], self._clear, None, [*taken, *about_answer[3:]], **quick)
        self.roll.click(self._roll, None, [*taken, *about_answer[3:]], **quick)
        self.recorder.stop_recording(self._attach, [self.recorder, self.message], [self.message], **quick)
        self.share.click(self._share, self.turns, self.link, **options).success(
            None,
            self.link,
            self.link,
            js="(id) => `${location.origin}${location.pathname}?conversation=${id}`",
            **options,
        )
        frames, start, end = self.settings[:3]
        self.demo.load(self._open, None, [*taken, *about_answer[3:], frames, start, end, self.stop], **options)
        if self.engine.alpha is not None:
            alpha, compare, other = self.settings[-3:]
            changes = [alpha.change, compare.change, other.change]
            gr.on(changes, self._label, [alpha, compare, other], [self.chat, self.other_chat], **quick)

    def _submit(self, message: dict, turns: list[Turn], *values: Any) -> Iterator[tuple]:
        yield from self._take(turns, message, lambda: self.actions.take(message, turns, values))

    def _suggest(self, sample: list, message: dict, turns: list[Turn], *values: Any) -> Iterator[tuple]:
        message = {"text": sample[0], "files": message["files"]}
        yield from self._take(turns, message, lambda: self.actions.take(message, turns, values))

    def _example(self, event: gr.SelectData, turns: list[Turn], *values: Any) -> Iterator[tuple]:
        message = {"text": event.value["text"], "files": [file["path"] for file in event.value["files"]]}
        yield from self._take(turns, message, lambda: self.actions.take(message, turns, values))

    def _retry(self, event: gr.RetryData, turns: list[Turn], *values: Any) -> Iterator[tuple]:
        yield from self._take(turns, None, lambda: self.actions.ask_again(turns, values))

    def _edit(self, event: gr.EditData, turns: list[Turn], *values: Any) -> Iterator[tuple]:
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        text = views.without_marks(event.value)
        kept = turns[: views.turn_of(turns, index) + 1]
        yield from self._take(turns, None, lambda: self.actions.edit(kept, text, values))

    def _take(self, turns: list[Turn], message: dict | None, take: Callable[[], list[Turn]]) -> Iterator[tuple]:
        """Show a question at once, and then as it was taken; or what is wrong with it, with the question kept."""
        if message is not None:
            shown = [views.to_chat(turns, column) + views.reading(**message) for column in (0, 1)]
            yield gr.skip(), *shown, gr.MultimodalTextbox(value=None, submit_btn=False), gr.skip(), gr.skip()
        try:
            turns = take()
        except gr.Error as error:
            gr.Warning(error.message, duration=None)
            box = {} if message is None else {"value": message}
            yield *self._shown(turns), gr.MultimodalTextbox(submit_btn=True, **box), gr.skip(), gr.skip()
            return
        media = next((turn.media for turn in reversed(turns) if turn.media), ())
        asked = {turn.question for turn in turns}
        left = [question for medium in media[-1:] for question in medium.truths if question not in asked]
        box = gr.MultimodalTextbox(submit_btn=False, stop_btn=True)
        yield *self._shown(turns), box, self._suggested(left), gr.Textbox(visible=False)

    def _suggested(self, questions: Sequence[str]) -> gr.Dataset:
        return gr.Dataset(samples=[[question] for question in questions] or [[""]], visible=bool(questions))

    def _shown(self, turns: list[Turn]) -> tuple:
        files = {file for medium in media_of(turns) for file in (medium.path, medium.shown) if file}
        self.chat.temp_files.update(files)  # what components keep in this set is deleted after a day
        return turns, views.to_chat(turns), views.to_chat(turns, 1)

    def _label(self, alpha: float, compare: bool, other: float) -> tuple:
        first = gr.Chatbot(label=f"α = {alpha:g}" if compare else "Conversation", show_label=compare)
        return first, gr.Chatbot(label=f"α = {other:g}", show_label=True, visible=compare)

    def _idle(self) -> gr.MultimodalTextbox:
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)

    def _answer(self, turns: list[Turn], stop: str, *values: Any) -> Iterator[tuple]:
        if not turns or turns[-1].answers:  # the question was not taken
            yield (gr.skip(),) * 6
            return
        for grown, seen, prompt in self.actions.answer(turns, stop, values):
            first = (gr.skip(), gr.skip()) if seen is None else (views.frames(seen), views.prompt(prompt))
            yield *self._shown(grown), first[0], views.facts(grown[-1].answers), first[1]

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
    ) -> str:
        """Ask one question about uploaded videos and images. The answer is streamed."""
        bounds = ["" if bound is None else str(bound) for bound in (start, end)]
        values = (num_frames, *bounds, "", temperature, max_new_tokens, "", alpha)
        paths = [file["path"] if isinstance(file, dict) else str(file) for file in files]
        turns = self.actions.take({"text": question, "files": paths}, [], values)
        for grown, _, _ in self.actions.answer(turns, secrets.token_hex(), values):
            if grown[-1].answers:
                yield grown[-1].answers[0].text

    def _undo(self, turns: list[Turn]) -> tuple:
        *before, last = turns
        return *self._shown(before), {"text": last.question, "files": [medium.path for medium in last.media]}

    def _clear(self, medium: Medium | None = None) -> tuple:
        """Begin a conversation, with a medium attached and questions about it to choose from."""
        files = [medium.path] if medium else []
        questions = tuple(medium.truths) if medium else ()
        frames = views.frames(self.actions.preview(medium)) if medium else views.NO_FRAMES
        shown = (*self._shown([]), {"text": "", "files": files}, self._suggested(questions))
        return *shown, gr.Textbox(visible=False), frames, "", views.NO_PROMPT

    def _roll(self) -> tuple:
        return self._clear(self.actions.roll())

    def _attach(self, recording: str | None, message: dict) -> dict:
        return {**message, "files": [*message["files"], *([recording] if recording else [])]}

    def _share(self, turns: list[Turn]) -> gr.Textbox:
        with errors_for_people():
            return gr.Textbox(value=self.actions.shelf.store(turns), visible=True)

    def _open(self, request: gr.Request) -> tuple:
        """Open what the page's address names: a shared conversation, or a medium with a question."""
        wanted = dict(request.query_params)
        turns, message, fields = [], {"text": "", "files": []}, [gr.skip()] * 3
        try:
            if "conversation" in wanted:
                turns = self.actions.open_shared(wanted["conversation"])
            message["text"] = wanted.get("question", "")[:MAX_QUESTION]
            for place, name in enumerate(("num_frames", "start", "end")):
                if (number := read_number(name, wanted.get(name, ""))) is not None:
                    fields[place] = f"{number:g}" if place else int(number)
            if "video" in wanted:
                message["files"] = [self.actions.fetch(wanted["video"])]
        except ValueError as error:
            gr.Warning(" ".join(str(error).split()), duration=None)
        shown = (*self._shown(turns), message, self._suggested(()), gr.skip())
        facts = views.facts(turns[-1].answers) if turns else ""
        return *shown, views.NO_FRAMES, facts, views.NO_PROMPT, *fields, secrets.token_hex()
