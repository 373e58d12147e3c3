"""From decoded frames to normalised pixels."""

from functools import partial

import numpy as np
from measuring import OURS, Contender, Job, Setting, Step
from transformers import LlavaNextVideoVideoProcessor, VideoLlavaVideoProcessor

from jobs.models import FRAMES, SHAPES
from pllava.video_processing_pllava import PllavaVideoProcessor

PROCESSORS = {
    "ours": PllavaVideoProcessor,
    "transformers, LLaVA-NeXT-Video": LlavaNextVideoVideoProcessor,
    "transformers, Video-LLaVA": VideoLlavaVideoProcessor,
}
HEIGHTS = {"360p": 360, "1080p": 1080}


def prepare(name: str, height: int, setting: Setting) -> Step:
    side = SHAPES[setting.size].image
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    process = PROCESSORS[name](**sizes)
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, height, height * 16 // 9, 3), dtype=np.uint8)
    pixels = process(videos=[frames], return_tensors="pt", device=setting.device)["pixel_values_videos"]

    def run() -> None:
        process(videos=[frames], return_tensors="pt", device=setting.device)

    return Step(run, frames.nbytes + pixels.nbytes)


def cases(setting: Setting) -> dict[str, dict[str, Contender]]:
    return {name: {peer: partial(prepare, peer, height) for peer in PROCESSORS} for name, height in HEIGHTS.items()}


JOB = Job(
    "Preprocessing: 16 decoded frames are resized, cropped and normalised. The limit is reading the frames and "
    "writing the pixels once, at the rate of a large copy.",
    "copy",
    cases,
    slow={
        OURS: "Resizing with antialiasing takes dozens of operations a value, and most of the time; only reading and "
        "writing would be as fast as the limit.",
    },
)
