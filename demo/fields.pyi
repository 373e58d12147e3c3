"""The fields of the page that are not Gradio's own: they take uploads only. And those of the settings."""

from typing import Any

import gradio as gr

from ..files import VIDEO_SUFFIXES
from .engine import Engine

MAX_FRAMES = 128
MAX_TOKENS = 2048


class _UploadsOnly:
    """Gradio fetches a file that a client names by its address. Here media come by upload, or through the gate."""

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        if str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("Upload the file: this server fetches none.", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)

from gradio.events import Dependency

class MediaTextbox(_UploadsOnly, gr.MultimodalTextbox):
    """A question with files."""

    def get_block_name(self) -> str:
        return "multimodaltextbox"

    def preprocess(self, payload: Any) -> dict[str, Any]:
        return {"text": payload.text or "", "files": [file.path for file in payload.files]}
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Recorder(_UploadsOnly, gr.Video):
    """A camera. Gradio's would run the program ffmpeg to drop the sound, which is not recorded anyway."""

    def get_block_name(self) -> str:
        return "video"

    def preprocess(self, payload: Any) -> str | None:
        return payload and payload.path
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


def settings_fields(engine: Engine) -> list[gr.components.Component]:
    """Build the fields of the settings, in the order in which `Asked.read` takes their values."""
    config = engine.model.config
    grid, has_adapter = engine.grid, engine.alpha is not None
    with gr.Row():
        frames = gr.Number(
            config.num_frames, label="Frames", info="Sampled from each video", precision=0, minimum=1, maximum=MAX_FRAMES,
            min_width=100,
        )  # fmt: skip
        start = gr.Number(None, label="Start", info="Seconds, newest video", minimum=0, min_width=100)
        end = gr.Number(None, label="End", info="Seconds, newest video", minimum=0, min_width=100)
    pooling = gr.Textbox(
        " x ".join(map(str, config.pooling_shape)), label="Pooling", max_lines=1,
        info=f"Frames x rows x columns that are left of each video; at most {grid} rows and columns",
    )  # fmt: skip
    temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 always gives the likeliest answer")
    tokens = gr.Number(256, label="Length limit", info="Tokens of an answer", precision=0, minimum=1, maximum=MAX_TOKENS)
    system = gr.Textbox("", label="System text", info="Comes before the conversation", lines=2, max_lines=6)
    with gr.Group(visible=has_adapter):
        highest = max(64.0, 2 * (engine.alpha or 0))
        alpha = gr.Slider(
            0, highest, engine.alpha, step=0.5, label="Alpha",
            info=f"Strength of the adapter: 0 gives the text weights of the image model; trained with {engine.alpha:g}"
            if has_adapter else None,
        )  # fmt: skip
        compare = gr.Checkbox(False, label="Answer at two alphas, side by side")
        other = gr.Slider(0, highest, (engine.alpha or 0) / 8, step=0.5, label="Second alpha")
    return [frames, start, end, pooling, temperature, tokens, system, alpha, compare, other]