"""
What one question about a clip costs each published model: `python benchmarks/reproduction_costs.py` prints it. With
`--write` it goes to eval/reproduce/costs.json, from which `python -m pllava.eval reproduce` estimates hours on a GPU.

Operations and bytes are counted on models without memory for their weights. The shares of a machine's limits are those
that benchmarks/results/real_size.json has.
"""

import json
from typing import Annotated, Any

import torch
import typer
from memory import SIZES, size_config
from real_size import RESULT, ROOT
from torch.utils.flop_counter import FlopCounterMode

import pllava
from pllava.files import read_object, replace_file

FILE = ROOT / "eval" / "reproduce" / "costs.json"


@torch.no_grad()
def count_work(size: str, prompt_tokens: int) -> dict[str, int]:
    """
    Return the parameters of a published model; the operations that it needs to encode a clip and to read a prompt; and
    the bytes, in bfloat16, of the weights that each new token reads, and of the prompt's keys and values.
    """
    config = size_config(size)
    with torch.device("meta"):
        model = pllava.PllavaForConditionalGeneration(config)
        frames = torch.empty(1, config.num_frames, 3, config.image_size, config.image_size)
        prompt = torch.empty(1, prompt_tokens, config.text_config.hidden_size)
        with FlopCounterMode(display=False) as vision:
            model.get_video_features(frames)
        with FlopCounterMode(display=False) as language_model:
            model.model.language_model(inputs_embeds=prompt)
    text = config.text_config
    read = [*model.model.language_model.layers.parameters(), *model.lm_head.parameters()]
    keys = text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    return {
        "parameters": model.num_parameters(),
        "encode": vision.get_total_flops(),
        "prefill": language_model.get_total_flops(),
        "weights": torch.bfloat16.itemsize * sum(weight.numel() for weight in read),
        "cache": torch.bfloat16.itemsize * 2 * keys * prompt_tokens,
    }


def measured_shares(measured: dict[str, Any]) -> dict[str, float]:
    """Return the share of the limit that bounds it, which each step of a model of real size reached when it ran."""
    limits, steps, facts = measured["limits"], measured["steps"], measured["facts"]
    encode, prefill = (
        measured["flops"][step] / limits["matmul"] / steps[step]["seconds"] for step in ("encode the video", "prefill")
    )
    moved = facts["decoded_tokens"] * facts["weights_per_token"]
    return {"encode": encode, "prefill": prefill, "decode": moved / limits["copy"] / steps["decode"]["seconds"]}


def costs() -> dict[str, Any]:
    """Return what eval/reproduce/costs.json has."""
    measured = read_object(RESULT, "limits", "steps", "facts", "flops")
    tokens = measured["facts"]["prompt_tokens"]
    return {
        "source": "python benchmarks/reproduction_costs.py --write",
        "measured_in": RESULT.relative_to(ROOT).as_posix(),
        "measured_on": f"a model of size {measured['size']} on a CPU ({measured['machine']['processor']})",
        "shares": measured_shares(measured),
        "prompt_tokens": tokens,
        "models": {size: count_work(size, tokens) for size in SIZES},
    }


def main(write: Annotated[bool, typer.Option("--write", help="Rewrite eval/reproduce/costs.json.")] = False) -> None:
    """Count what one question about a clip costs each published model."""
    text = json.dumps(costs(), indent=1) + "\n"
    if write:
        replace_file(FILE, text)
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
