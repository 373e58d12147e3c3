"""The visual tokens of a run before and after its training: their norms, and how alike they are."""

import json
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ...adapters import plain_model
from ...files import read_lines, replace_file
from ...processing_pllava import PllavaProcessor
from .asking import held_out
from .settings import CLIPS, Run
from .workshop import Workshop

CLIP_COUNT = 64
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
FILE = "tokens.json"


@torch.inference_mode()
def measure_tokens(
    workshop: Workshop, run: Run, model: PreTrainedModel | PeftModel, processor: PllavaProcessor
) -> None:
    """Write the statistics of a trained run's visual tokens to its folder, unless they are there."""
    file = workshop.folder_of(run) / FILE
    if file.exists():
        return
    folder = held_out(workshop, CLIPS)
    rows = read_lines(folder / "questions.jsonl", "video")
    paths = list(dict.fromkeys(str(folder / row["video"]) for row in rows))[:CLIP_COUNT]
    pixels = processor.video_processor(paths, return_tensors="pt")["pixel_values_videos"]
    plain = plain_model(model)
    statistics: dict[str, Any] = {"after": describe(*visual_tokens(plain, pixels))}
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            statistics["before"] = describe(*visual_tokens(plain, pixels))
    replace_file(file, json.dumps(statistics, indent=1) + "\n")


def visual_tokens(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the projected tokens, `(clips, frames, patches, D)`, and the pooled ones, `(clips, tokens, D)`."""
    clips = model.model.encode_frames(pixels.flatten(0, 1)).last_hidden_state.unflatten(0, pixels.shape[:2])
    return model.model.multi_modal_projector(clips), torch.stack(model.model.pool(list(clips)))


def describe(frames: Tensor, pooled: Tensor) -> dict[str, Any]:
    """
    Return quantiles of the norms, the share of dominant tokens (more than twice the median norm), and the mean cosine
    of the tokens at one place in successive frames.
    """
    norms = {"frames": frames.norm(dim=-1).flatten(), "pooled": pooled.norm(dim=-1).flatten()}
    return {
        "norms": {name: torch.quantile(each, torch.tensor(QUANTILES)).tolist() for name, each in norms.items()},
        "dominant": {name: 100 * (each > 2 * each.median()).float().mean().item() for name, each in norms.items()},
        "similarity": cosine_similarity(frames[:, :-1], frames[:, 1:], dim=-1).mean().item(),
    }
