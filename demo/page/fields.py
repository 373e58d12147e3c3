"""The fields of the settings."""

import gradio as gr

from ...pooling_pllava import POOLINGS
from ..engine import Engine

MAX_FRAMES = 128
MAX_TOKENS = 2048


def settings_fields(engine: Engine) -> list[gr.components.Component]:
    """Build the fields of the settings, in the order in which `Asked.read` takes their values."""
    config = engine.config
    bound = {"info": "In seconds", "max_lines": 1, "min_width": 100}
    pooled = f"Of videos: {', '.join(POOLINGS)}, or one of them with its shape, as in {config.video_pooling}. " + (
        "Images are pooled alike"
        if config.image_pooling_shape is None
        else f"Images keep their {config.num_image_tokens} tokens"
    )
    limit = {"precision": 0, "minimum": 1}
    with gr.Row():
        frames = gr.Number(
            config.num_frames, label="Frames", info="Of each video", maximum=MAX_FRAMES, min_width=100, **limit
        )
        start = gr.Textbox("", label="Start", placeholder="beginning", **bound)
        end = gr.Textbox("", label="End", placeholder="end", **bound)
    pooling = gr.Textbox(str(config.video_pooling), label="Pooling", info=pooled, max_lines=1)
    temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 always gives the likeliest answer")
    tokens = gr.Number(256, label="Length limit", info="Tokens of an answer", maximum=MAX_TOKENS, **limit)
    system = gr.Textbox("", label="System text", info="Comes before the conversation", lines=2, max_lines=6)
    fields = [frames, start, end, pooling, temperature, tokens, system]
    if engine.alpha is None:
        return fields
    strength = f"Strength of the adapter, loaded at {engine.alpha:g}; 0 gives the text weights of the image model"
    highest = max(64.0, 2 * engine.alpha)
    with gr.Group():
        alpha = gr.Slider(0, highest, engine.alpha, step=0.5, label="Alpha", info=strength)
        compare = gr.Checkbox(False, label="Answer at two alphas, side by side", elem_id="compare")
        other = gr.Slider(0, highest, engine.alpha / 8, step=0.5, label="Second alpha")
    return [*fields, alpha, compare, other]
