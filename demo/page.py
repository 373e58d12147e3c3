"""The page of the chat: its layout, and which action follows which event."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder

from ..media import MediaGate, MediaLimits
from ..processing_pllava import PllavaProcessor
from . import views, worlds
from .actions import Actions, Asked, errors_for_people
from .conversation import Turn
from .engine import Engine
from .fields import FILE_TYPES, MediaTextbox, Recorder, settings_fields
from .sharing import Shelf

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

HERE = Path(__file__).parent
MAX_WAITING = 20  # questions in the queue
CACHE = (3600, 86_400)  # each hour, uploads that are older than a day are deleted (seconds)
ABOUT_NANO = (
    "<b>nano</b> is a tiny model that knows one thing: a synthetic world of moving shapes. It answers questions about "
    "clips of that world, and nothing else. For real footage, start with a real checkpoint: "
    "<code>pllava demo ORGANISATION/MODEL</code>"
)
WELCOME = "Add a video or an image below and ask about it, or start with one of these."


def build_demo(
    model: "PreTrainedModel | PeftModel",
    processor: PllavaProcessor,
    name: str,
    about: str,
    shared: Path,
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
        about: A sentence about it, as HTML; `ABOUT_NANO` is that of nano.
        shared: The folder in which shared conversations are kept.
        links: The gate for media that an address names (`?video=...`); by default it lets nothing through.
        limits: Of uploads.
        on_gpu: Wraps the generator function that uses the model, such as `spaces.GPU(duration=60)`.
    """
    uploads = Path(get_upload_folder())
    limits = limits or MediaLimits()
    gate = MediaGate(allowed_local_media_path=[uploads], limits=limits)
    engine = Engine(model, processor, gate, on_gpu)
    return Page(Actions(engine, gate, uploads, links or MediaGate(), Shelf(shared)), name, about).demo


def launch_options(limits: MediaLimits | None = None) -> dict[str, Any]:
    """Return what `launch` takes: the looks, and the size limit of uploads. Gradio serves no files but uploads."""
    return {
        "theme": gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css_paths": [HERE / "page.css"],
        "js": (HERE / "page.js").read_text(encoding="utf-8"),
        "max_file_size": (limits or MediaLimits()).max_bytes,
        "footer_links": ["api", "gradio"],
        "run_history": False,
        "enable_monitoring": False,
        "show_error": False,
    }


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
        self.stop = gr.State(secrets.token_hex)
        gr.HTML(f"<header><h1>PLLaVA <span>{name}</span></h1><p>{about}</p></header>", elem_id="about")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(scale=5, min_width=340, elem_id="talk"):
                with gr.Row(elem_id="chats"):
                    self.chat = self._chatbot("Conversation", examples=self._examples(), placeholder=WELCOME)
                    self.other_chat = self._chatbot("Second answers", visible=False)
                self.suggestions = gr.Dataset(
                    components=["textbox"], samples=[[""]], label="Ask about this clip", elem_id="suggestions",
                    visible=False, type="values",
                )  # fmt: skip
                self.message = MediaTextbox(
                    label="Your question", placeholder="Ask about a video or an image", show_label=False,
                    file_count="multiple", file_types=FILE_TYPES, elem_id="message", autofocus=True, max_plain_text_length=100_000, max_lines=8,
                )  # fmt: skip
                with gr.Row(elem_id="tools"):
                    self.roll = gr.Button("Roll a new clip", size="sm", elem_id="roll")
                    self.share = gr.Button("Share", size="sm", elem_id="share")
                    self.clear = gr.Button("Clear", size="sm", elem_id="clear")
                self.link = gr.Textbox(
                    label="Link to this conversation", visible=False, interactive=False, buttons=["copy"], elem_id="link"
                )
                with gr.Accordion("Record a video", open=False, elem_id="record"):
                    self.recorder = Recorder(label="Camera", sources=["webcam"], include_audio=False, height=280)
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
        examples = []
        for number, kind in worlds.EXAMPLES.items():
            medium, question = worlds.example(folder, number, kind)
            poster = worlds.picture(folder, number)[0]
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
        quick = {"queue": False, **options}
        self.message.stop(self.actions.stop, self.stop, None, **quick)
        self.chat.undo(self._undo, [self.turns], [*shown, self.message], **quick)
        gr.on([self.clear.click, self.chat.clear], self._clear, None, [*taken, *about_answer[3:]], **quick)
        self.roll.click(self._roll, [self.message], [self.message, self.suggestions], concurrency_id="media", **options)
        self.recorder.stop_recording(self._attach, [self.recorder, self.message], [self.message], **quick)
        self.share.click(self._share, self.turns, self.link, **options).success(
            None, self.link, self.link, js="(id) => `${location.origin}${location.pathname}?conversation=${id}`", **options
        )
        if self.engine.alpha is not None:
            compare = self.settings[8]
            compare.change(lambda on: gr.Chatbot(visible=on), compare, self.other_chat, **quick)

    def _submit(self, message: dict, turns: list[Turn], *values: Any) -> tuple:
        return self._taken(self.actions.take(message["text"], message["files"], turns, values))

    def _suggest(self, sample: list, message: dict, turns: list[Turn], *values: Any) -> tuple:
        return self._taken(self.actions.take(sample[0], message["files"], turns, values))

    def _example(self, event: gr.SelectData, turns: list[Turn], *values: Any) -> tuple:
        files = [file["path"] for file in event.value.get("files", [])]
        return self._taken(self.actions.take(event.value["text"], files, turns, values))

    def _retry(self, event: gr.RetryData, turns: list[Turn], *values: Any) -> tuple:
        return self._taken(self.actions.ask_again(turns, values))

    def _edit(self, event: gr.EditData, turns: list[Turn], *values: Any) -> tuple:
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        number = views.turn_of(turns, index)
        return self._taken(self.actions.edit(turns[: number + 1], event.value, values))

    def _taken(self, turns: list[Turn]) -> tuple:
        media = next((turn.media for turn in reversed(turns) if turn.media), ())
        asked = {turn.question for turn in turns}
        left = [[question] for medium in media[-1:] for question in medium.truths if question not in asked]
        box = MediaTextbox(value=None, submit_btn=False, stop_btn=True)
        return *self._shown(turns), box, self._suggested(left), gr.Textbox(visible=False)

    def _suggested(self, samples: list[list[str]]) -> gr.Dataset:
        return gr.Dataset(samples=samples or [[""]], visible=bool(samples))

    def _shown(self, turns: list[Turn]) -> tuple:
        return turns, views.to_chat(turns), views.to_chat(turns, 1)

    def _idle(self) -> MediaTextbox:
        return MediaTextbox(submit_btn=True, stop_btn=False)

    def _answer(self, turns: list[Turn], stop: str, *values: Any) -> Iterator[tuple]:
        for grown, seen, prompt in self.actions.answer(turns, stop, values):
            first = (gr.skip(), gr.skip()) if seen is None else (views.frames(seen), views.prompt(prompt))
            yield *self._shown(grown), first[0], views.facts(grown[-1].answers), first[1]

    def _undo(self, turns: list[Turn]) -> tuple:
        *before, last = turns
        return *self._shown(before), {"text": last.question, "files": [medium.path for medium in last.media]}

    def _clear(self) -> tuple:
        box = MediaTextbox(value=None)
        return *self._shown([]), box, self._suggested([]), gr.Textbox(visible=False), views.NO_FRAMES, "", views.NO_PROMPT

    def _roll(self, message: dict) -> tuple:
        medium, questions = self.actions.roll()
        return {"text": message["text"], "files": [medium.path]}, self._suggested([[text] for text in questions])

    def _attach(self, recording: str | None, message: dict) -> dict:
        return {**message, "files": [*message["files"], *([recording] if recording else [])]}

    def _share(self, turns: list[Turn]) -> gr.Textbox:
        with errors_for_people():
            return gr.Textbox(value=self.actions.shelf.store(turns), visible=True)
