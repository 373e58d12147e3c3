"""The card of a model or a processor that is pushed to the Hub, written from what its config says."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .pooling_pllava import Pooling

EMPTY_CARDS = (  # what transformers and PEFT write
    "# Model Card for Model ID",
    "This model card has been generated automatically according to the information the Trainer had access to",
)
SIGNATURE = re.compile(r"\n<!-- Written by pllava, and not edited while this is its hash: ([0-9a-f]{64}) -->\n\Z")
POOLED = {
    "average": "average-pooled to {}",
    "slowfast": "pooled along a slow and a fast path, to {} and {}",
    "merge": "merged where they are alike in time, to {}",
}
TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ summary }}
{% if figure %}
![Frames, vision tower, projector, average pooling, language model]({{ figure }})

*The method, with the sizes of the paper's models.*
{% endif %}
{% if processor -%}
It samples {{ num_frames }} frames of a clip, and writes a placeholder into the prompt for each token of the clip. The
model has the frames {{ pooled }}.
{%- else -%}
{{ num_frames }} frames of a clip pass through the vision tower and the projector. The tokens of all frames are
{{ pooled }}, which the language
model reads as part of its prompt. The pooling has no parameters.
{%- endif %}
{%- if image %} An image is read by itself, as {{ image }} = {{ num_image_tokens }} tokens.{% endif %}

## How to use

```python
{% if adapter or processor -%}
{% if adapter %}from peft import AutoPeftModelForCausalLM
{% endif %}from transformers import AutoProcessor

{% if adapter %}model = AutoPeftModelForCausalLM.from_pretrained("{{ repo_id }}", trust_remote_code=True)
{% endif %}processor = AutoProcessor.from_pretrained("{{ repo_id }}", trust_remote_code=True)
question = [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "Describe the video."}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
{%- if adapter %}
ids = model.generate(**inputs.to(model.device), max_new_tokens=128)
print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
{%- endif %}
{%- else -%}
from transformers import pipeline

pipe = pipeline("video-text-to-text", model="{{ repo_id }}", trust_remote_code=True)
print(pipe("clip.mp4", text="Describe the video.", max_new_tokens=128)[0]["generated_text"])
{%- endif %}
```

`trust_remote_code=True` runs the Python files of this repository{% if adapter %} and of the base model's{% endif %}:
read them, and pin the commit that you have read with `revision`.
{% if not processor %}
With the `pllava` package, from a terminal:

```bash
pllava chat clip.mp4 "Describe the video." --{{ "adapter" if adapter else "model" }} {{ repo_id }}
pllava caption clip.mp4 --out captions.jsonl --{{ "adapter" if adapter else "model" }} {{ repo_id }}
```
{% endif %}
{% for section in sections -%}
{{ section }}

{% endfor -%}
## Limits and bias

The model sees {{ num_frames }} frames of a clip, however long it is, and hears nothing: it misses what happens between
two frames, and small text. It can state what is not in the video, above all if a question supposes it. It has the
biases of its vision tower, of its language model and of its training data, also in what it says about people. Do not
use it where a wrong answer harms someone, nor to identify or to judge people.

## Citation

```bibtex
@article{xu2024pllava,
  title = {PLLaVA: Parameter-free LLaVA Extension from Images to Videos for Video Dense Captioning},
  author = {Lin Xu and Yilin Zhao and Daquan Zhou and Zhijie Lin and See Kiong Ng and Jiashi Feng},
  journal = {arXiv preprint arXiv:2404.16994},
  year = {2024}
}
```
"""


def build_card(
    repo_id: str,
    config: Any,
    summary: str | None = None,
    metadata: dict[str, Any] | None = None,
    sections: Sequence[str] = (),
    **values: Any,
) -> ModelCard:
    """
    Build the card of a PLLaVA.

    Args:
        config: Its `PllavaConfig`, or its processor.
        summary: What it is, in one or two sentences; by default what `config.origin` says.
        metadata: Fields of [`~huggingface_hub.ModelCardData`] in addition to those that all PLLaVAs have.
        sections: Markdown between the how-to and the limits.
        values: For the template: `adapter` or `processor` if it is one, and the file name of the `figure`.
    """
    origin = getattr(config, "origin", None)
    common = {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "language": "en",
        "license": next(iter(licenses(origin)), None),
        "base_model": one_or_list(hub_ids(origin)),
        "tags": ["pllava", "video"],
    }
    return ModelCard.from_template(
        ModelCardData(**{**common, **(metadata or {})}),
        template_str=TEMPLATE,
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        summary=summary or summarise(config, values.get("processor", False)),
        num_frames=config.num_frames,
        pooled=f"{describe_pooling(config.video_pooling)} = {config.num_video_tokens:,} tokens",
        image=config.image_pooling_shape and " x ".join(map(str, config.image_pooling_shape[1:])),
        num_image_tokens=config.num_image_tokens,
        sections=sections,
        **{"adapter": False, "processor": False, "figure": None, **values},
    )


def describe_pooling(pooling: Pooling) -> str:
    """Say what becomes of a clip's tokens: they are "average-pooled to 16 x 12 x 12"."""
    return POOLED[pooling.name].format(*(" x ".join(map(str, shape)) for shape in pooling.shapes))


def summarise(config: Any, processor: bool) -> str:
    """Say in two sentences what a model is, from `config.origin`."""
    what = "The processor of a video model" if processor else "A video model"
    text = f"{what} that answers questions about clips and describes them, [PLLaVA](https://arxiv.org/abs/2404.16994)"
    origin = getattr(config, "origin", None)
    if not origin:
        return f"{text}, in the format of transformers."
    made = {
        "image": f"made of the image model {name_source(origin['source'])}, without training on videos",
        "merged": f"{name_source(origin['source'])} with an adapter merged into it",
        "trained": f"{name_source(origin['source'])}, fine-tuned",
    }.get(origin["kind"], f"converted from {name_source(origin['source'])} to the format of transformers")
    details = [f"its base is {name_source(origin['base'])}"] if "base" in origin else []
    details += [f"the adapter is {name_source(origin['adapter'])}"] if "adapter" in origin else []
    details += [f"the vision tower is {name_source(origin['vision_tower'])}"] if "vision_tower" in origin else []
    details += [f"the LoRA is merged at alpha = {origin['alpha']:g}"] if "alpha" in origin else []
    sentence = f" {'; '.join(details)}." if details else ""
    return f"{text}: {made}.{sentence[:2].upper()}{sentence[2:]}"


def name_source(source: dict[str, Any]) -> str:
    """Return a link to a source on the Hub, or say that it was a local folder."""
    ids = [source["repo_id"]] if source.get("repo_id") else hub_ids(source.get("origin"))
    links = " and ".join(f"[{id}](https://huggingface.co/{id})" for id in ids)
    return links if source.get("repo_id") else f"a local model made from {links}" if ids else "a local model"


def hub_ids(origin: dict[str, Any] | None) -> list[str]:
    """Return the ids of the Hub's repositories that a model was made from; those of its local sources' sources."""
    ids = []
    for part, source in sources(origin).items():
        if part != "vision_tower":  # not a base model: the model that had it is one
            ids += [source["repo_id"]] if source.get("repo_id") else hub_ids(source.get("origin"))
    return ids


def licenses(origin: dict[str, Any] | None) -> list[str]:
    """Return the licenses of what a model was made from."""
    return [source["license"] for source in sources(origin).values() if source.get("license")]


def sources(origin: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return what a model was made from, by its part in it."""
    return {part: origin[part] for part in ("source", "base", "adapter", "vision_tower") if part in (origin or {})}


def one_or_list(ids: list[str]) -> str | list[str] | None:
    """Return ids as metadata have them: one by itself, several as a list."""
    return ids if len(ids) > 1 else next(iter(ids), None)


# --- which cards are replaced ----------------------------------------------------------------------------------------


def sign(card: str) -> str:
    """Append a hash to the text of a card, by which [`is_generated`] knows that nobody has edited it."""
    text = SIGNATURE.sub("", card).rstrip("\n") + "\n"
    return f"{text}\n<!-- Written by pllava, and not edited while this is its hash: {_hash(text)} -->\n"


def is_generated(card: str) -> bool:
    """Whether a card was written here and not edited since, or is empty: then it may be replaced."""
    signature = SIGNATURE.search(card)
    return is_empty(card) if signature is None else _hash(card[: signature.start()]) == signature[1]


def is_empty(card: str) -> bool:
    """Whether a card has no text, or only what transformers and PEFT put there."""
    return not card.strip() or any(sentence in card for sentence in EMPTY_CARDS)


def _hash(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()


class CardOnPush:
    """A mixin for models and processors: `push_to_hub` replaces the empty card that transformers writes."""

    def _upload_modified_files(self, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        file = Path(working_dir) / "README.md"  # the one on the Hub, or an empty one
        text = file.read_text(encoding="utf-8") if file.exists() else None
        if text is not None and hasattr(self, "config") and is_generated(text):
            file.write_text(sign(str(build_card(repo_id, self.config))), encoding="utf-8")
        elif text is not None and is_empty(text):
            card = build_card(repo_id, self, metadata={"pipeline_tag": None}, processor=True)
            file.write_text(sign(str(card)), encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
