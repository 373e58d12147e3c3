"""From pixels and text to the first word's logits."""

from functools import partial

import torch
from measuring import OURS, Contender, Job, Setting, Step

from jobs.models import BUILDERS, DIFFERS, SMALL


def prepare(name: str, setting: Setting) -> Step:
    build, make = BUILDERS[name]
    model, inputs = build(setting), make(setting)
    options = {} if "stand-in" in name else {"logits_to_keep": 1}

    @torch.inference_mode()
    def run() -> None:
        model(**inputs, **options)

    return Step(run)


def cases(setting: Setting) -> dict[str, dict[str, Contender]]:
    return {"one clip": {name: partial(prepare, name) for name in BUILDERS}}


JOB = Job(
    "Prefill: from the pixels of a clip of 16 frames and 64 tokens of text to the first word's logits. The limit is "
    "the matrix products that each makes, at the rate of a large one.",
    "matmul",
    cases,
    DIFFERS,
    {
        OURS: SMALL,
        "transformers, LLaVA-NeXT-Video": "It pools before the projector, which then has a quarter of the tokens; for "
        "PLLaVA's weights that would give other values.",
        "transformers, Video-LLaVA": "It reads a quarter of the frames.",
    },
)
