"""The page of the chat: [`build_demo`] makes it, and [`launch_options`] are for its `launch`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import NANO
from ...adapters import plain_model
from ...configuration_pllava import PllavaConfig
from ...extras import needs_extra
from ...media import MediaGate, MediaLimits
from ...processing_pllava import PllavaProcessor
from ..engine import Engine
from ..sharing import Shelf

with needs_extra("demo"):
    import gradio as gr
    from gradio.utils import get_upload_folder
    from starlette.middleware import Middleware

    from ..actions import Actions
    from .events import Events
    from .layout import Layout
    from .uploads_only import UploadsOnly

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

HERE = Path(__file__).parent
MAX_WAITING = 20  # questions in the queue
CACHE = (3600, 86_400)  # each hour, uploads that are older than a day are deleted (seconds)
FONT, FONT_MONO = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
ABOUT_NANO = (
    "<b>nano</b> is a tiny model that knows one thing: a synthetic world of moving shapes. It answers questions about "
    "clips of that world, and nothing else. For real footage, start with a real checkpoint: "
    "<code>pllava demo ORGANISATION/MODEL</code>"
)
ABOUT = (
    "A video model that reads the pooled frames of a clip. It may be wrong: the frames that it saw stand beside its "
    "answers."
)


def build_demo(
    model: "PreTrainedModel | PeftModel",
    processor: PllavaProcessor,
    name: str,
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
        shared: The folder in which shared conversations are kept.
        links: The gate for media that an address names (`?video=...`); by default it lets nothing through.
        limits: Of uploads.
        on_gpu: Wraps the generator function that uses the model, such as `spaces.GPU(duration=60)`.
    """
    uploads = Path(get_upload_folder())
    limits = limits or MediaLimits()
    gate = MediaGate(allowed_local_media_path=[uploads], limits=limits)
    engine = Engine(model, processor, gate, on_gpu)
    shelf = Shelf(shared)
    shelf.delete_expired()
    actions = Actions(engine, gate, uploads, links or MediaGate(), shelf)
    with gr.Blocks(title=f"PLLaVA chat: {name}", delete_cache=CACHE, analytics_enabled=False) as page:
        about = ABOUT_NANO if is_nano(plain_model(model).config) else ABOUT
        Events(actions, Layout(engine, uploads, name, about)).connect(page)
    return page.queue(max_size=MAX_WAITING)


def is_nano(config: PllavaConfig) -> bool:
    """Whether a model has nano's architecture: nano itself, a copy on the Hub, or one that was trained on from it."""

    def sizes(config: PllavaConfig) -> tuple[int, ...]:
        text = config.text_config
        return text.vocab_size, text.hidden_size, text.num_hidden_layers, config.image_size

    return sizes(config) == sizes(PllavaConfig.from_pretrained(NANO))


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
        "app_kwargs": {"middleware": [Middleware(UploadsOnly)]},
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
