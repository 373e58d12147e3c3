"""The components of the page, and where they stand."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from .. import worlds
from ..actions import MAX_QUESTION
from ..engine import Engine
from . import views
from .fields import settings_fields

WELCOME = "Add a video or an image below and ask about it, or start with one of these."


class Layout:
    """
    Builds the components, in the current `gr.Blocks`.

    Args:
        engine: Its model decides which settings there are.
        uploads: The folder into which the clips of the examples are written.
        name: The model's name.
        about: A sentence about it, as HTML.
    """

    def __init__(self, engine: Engine, uploads: Path, name: str, about: str):
        self.turns = gr.State([])
        gr.HTML(f"<header><h1>PLLaVA <span>{escape(name)}</span></h1><p>{about}</p></header>", elem_id="about")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(scale=5, min_width=340, elem_id="talk"):
                self._build_talk(uploads / "worlds")
            with gr.Column(scale=3, min_width=320, elem_id="insight"):
                self._build_insight(engine)

    def _build_talk(self, examples: Path) -> None:
        with gr.Row(elem_id="chats"):
            listed = _examples(examples)
            self.chat = _chatbot("Conversation", editable="user", examples=listed, placeholder=WELCOME)
            self.chat.keep_in_cache.update(example["icon"]["path"] for example in listed)  # else deleted after a day
            self.other_chat = _chatbot("Second answers", visible=False)
        label = "Ask about this clip"
        self.suggestions = gr.Dataset(
            components=["textbox"], samples=[[""]], label=label, visible=False, elem_id="suggestions"
        )
        self.message = gr.MultimodalTextbox(
            label="Your question",
            show_label=False,
            placeholder="Ask about a video or an image",
            file_count="multiple",
            max_lines=8,
            max_plain_text_length=MAX_QUESTION,
            autofocus=True,
            elem_id="message",
        )
        with gr.Row(elem_id="tools"):
            self.roll, self.share, self.clear = (
                gr.Button(text, size="sm") for text in ("Roll a new clip", "Share", "Clear")
            )
        self.link = gr.Textbox(
            label="Link to this conversation", visible=False, interactive=False, buttons=["copy"], elem_id="link"
        )
        with gr.Accordion("Record a video", open=False, elem_id="record"):
            # Without sound, or mirrored, Gradio would need the program ffmpeg
            camera = gr.WebcamOptions(mirror=False, constraints={"video": {"width": 640, "height": 480}})
            self.recorder = gr.Video(
                label="Camera", sources=["webcam"], webcam_options=camera, include_audio=True, height=280
            )

    def _build_insight(self, engine: Engine) -> None:
        gr.HTML("<h2>What the model saw</h2>")
        self.seen = gr.HTML(views.NO_FRAMES, elem_id="seen")
        self.facts = gr.HTML("", elem_id="facts")
        with gr.Accordion("The prompt as it was sent", open=False, elem_id="prompt"):
            self.prompt = gr.HTML(views.NO_PROMPT)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.settings = settings_fields(engine)


def _chatbot(label: str, **options: Any) -> gr.Chatbot:
    return gr.Chatbot(
        label=label,
        show_label=False,
        height="min(60vh, 620px)",
        buttons=["copy", "copy_all"],
        render_markdown=False,
        group_consecutive_messages=False,
        **options,
    )


def _examples(folder: Path) -> list[dict[str, Any]]:
    examples = []
    for number, kind in worlds.EXAMPLES.items():
        medium, question = worlds.example(folder, number, kind)
        files = [{"path": medium.path, "orig_name": medium.name}]
        icon = worlds.picture(folder, number).path
        examples.append({"text": question, "display_text": question, "files": files, "icon": icon})
    return examples
