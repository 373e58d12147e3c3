"""Seconds a token after the first one, in batches."""

import time
from functools import partial

import torch
from measuring import OURS, Contender, Job, Round, Setting, Step, left_out
from transformers.generation.streamers import BaseStreamer

from jobs.models import BUILDERS, DIFFERS

TOKENS = 16
VLLM = "vllm"
SAME = "Both run the same text model; their spreads overlap."
NO_VLLM = "it has an environment of its own, with other versions of torch and transformers: `make test-vllm`"


class Clock(BaseStreamer):
    """Notes when each token of a batch is known."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def prepare(name: str, batch: int, setting: Setting) -> Step:
    build, make = BUILDERS[name]
    model, inputs = build(setting), make(setting, batch)
    text = model.language_model if "stand-in" in name else model
    config = text.config.get_text_config()

    @torch.inference_mode()
    def run() -> Round:
        clock = Clock()
        length = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
        model.generate(**inputs, **length, do_sample=False, streamer=clock, pad_token_id=0)
        # Without the prompt, which the streamer gets first, and the prefill
        return {"seconds": (clock.times[-1] - clock.times[-TOKENS]) / (TOKENS - 1)}

    language = text.model.language_model if hasattr(text.model, "language_model") else text.model
    weights = [*language.layers.parameters(), *text.lm_head.parameters()]
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cache = batch * inputs["input_ids"].shape[1] * values * setting.torch_dtype.itemsize
    return Step(run, sum(weight.nbytes for weight in weights) + cache)


def cases(setting: Setting) -> dict[str, dict[str, Contender]]:
    batches = (1, 8) if setting.device == "cpu" else (1, 8, 64)
    cases = {f"batch {batch}": {name: partial(prepare, name, batch) for name in BUILDERS} for batch in batches}
    return {case: {**contenders, VLLM: partial(left_out, NO_VLLM)} for case, contenders in cases.items()}


JOB = Job(
    "Decoding tokens: seconds for each token of a batch after the first one, by `generate`. The limit is reading the "
    "weights and the cache once, at the rate of a large copy.",
    "copy",
    cases,
    DIFFERS,
    {
        OURS: "The calls of `generate` take most of the time of so small a text model.",
        "original's graph (stand-in)": SAME,
        "transformers, LLaVA-NeXT-Video": SAME,
    },
)
