"""
Answers of vLLM, and of transformers, to the same chats. The Python of the vLLM environment runs it:

    python vllm_answers.py REQUESTS.json ANSWERS.json

The first file has {"model": path, "chats": [...], "engine": {options of LLM}, "reference": whether transformers
answers, too}. The second gets {"vllm": {"together": [...], "alone": [...], "frames": [...]}, "transformers": {...}}:
the answers to all chats in one batch and one by one, with the "prompt" and the "tokens" as ids, and hashes of what the
vision tower got. Only vLLM's plugin imports this package: without it, the model runs with the code in its checkpoint.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}  # in this process, to look into it
MAX_TOKENS = 24
Chat = list[dict[str, Any]]


def answer_with_transformers(path: str, chats: list[Chat]) -> dict[str, list]:
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    answers, frames = [], set()
    for chat in chats:
        inputs = processor.apply_chat_template(
            [{**message, "content": list(map(as_transformers_part, message["content"]))} for message in chat],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        (prompt,) = inputs["input_ids"].tolist()
        ids = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)[0].tolist()
        answers.append({"prompt": prompt, "tokens": without_end(ids[len(prompt) :], model.generation_config)})
        for field in ("pixel_values", "pixel_values_videos"):
            frames |= set(map(digest, inputs.get(field, ())))
    return {"alone": answers, "frames": sorted(frames)}


def as_transformers_part(part: dict[str, Any]) -> dict[str, Any]:
    """Turn {"type": "video_url", "video_url": {"url": ...}} into {"type": "video", "url": ...}."""
    kind = part["type"].removesuffix("_url")
    return part if kind == "text" else {"type": kind, "url": part[part["type"]]["url"]}


def answer_with_vllm(path: str, chats: list[Chat], options: dict[str, Any]) -> dict[str, list]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        path,
        trust_remote_code=True,
        model_impl="transformers",
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        limit_mm_per_prompt={"video": 4, "image": 4},
        **options,
    )
    frames = set()

    def watch(model: torch.nn.Module) -> str:
        for kind in ("video", "image"):
            setattr(
                model.model, f"get_{kind}_features", watching(getattr(model.model, f"get_{kind}_features"), frames)
            )
        return type(model.model).__module__

    (code,) = engine.apply_model(watch)
    print(f"The model's code: {code}")
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)

    def answers(batch: list[Chat]) -> list[dict[str, list[int]]]:
        outputs = engine.chat(batch, sampling, use_tqdm=False)
        ids = [(list(each.prompt_token_ids), list(each.outputs[0].token_ids)) for each in outputs]
        return [
            {"prompt": prompt, "tokens": without_end(tokens, engine.llm_engine.model_config.hf_config.text_config)}
            for prompt, tokens in ids
        ]

    together = answers(chats)
    return {"together": together, "alone": [answers([chat])[0] for chat in chats], "frames": sorted(frames)}


def watching(function, frames: set[str]):
    """Return the function, made to add the hashes of its pixels to `frames`."""

    def watched(pixels, **kwargs):
        frames.update(map(digest, pixels))
        return function(pixels, **kwargs)

    return watched


def digest(pixels: torch.Tensor) -> str:
    pixels = pixels.squeeze(0)  # the model takes an image as a video of one frame
    return f"{list(pixels.shape)} {hashlib.sha256(pixels.float().numpy().tobytes()).hexdigest()[:16]}"


def without_end(tokens: list[int], config: Any) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] == config.eos_token_id else tokens


if __name__ == "__main__":
    requests = json.loads(Path(sys.argv[1]).read_text())
    found = {}
    if requests["reference"]:  # first, since vLLM changes the classes of transformers
        found["transformers"] = answer_with_transformers(requests["model"], requests["chats"])
    found["vllm"] = answer_with_vllm(requests["model"], requests["chats"], requests["engine"])
    Path(sys.argv[2]).write_text(json.dumps(found))
