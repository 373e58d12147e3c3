"""What the Hub tells about a repository from the metadata of its card: the data itself and tags."""

import yaml

from ..metadata import card_header, read_metadata


def card_facts(kind: str, readme: str) -> dict:
    """Return the card's data and the tags that the Hub derives from it; a broken card has none."""
    try:
        data = read_metadata(card_header(readme) or "")
    except yaml.YAMLError:
        data = None
    if not isinstance(data, dict):
        return {"tags": []}
    facts = {"cardData": data, "tags": _tags(data)}
    if kind == "models":
        facts |= {key: data[key] for key in ("pipeline_tag", "library_name") if key in data}
        facts |= {"model-index": data["model-index"]} if "model-index" in data else {}
    if kind == "spaces":
        facts |= {key: data[key] for key in ("sdk", "models", "datasets") if key in data}
    return facts


def _tags(data: dict) -> list[str]:
    tags = [data[key] for key in ("library_name", "pipeline_tag") if key in data] + _listed(data, "tags")
    bases, relation = _listed(data, "base_model"), data.get("base_model_relation")
    tags += [f"base_model:{base}" for base in bases]
    tags += [f"base_model:{relation}:{base}" for base in bases if relation]
    tags += [f"dataset:{name}" for name in _listed(data, "datasets")] + _listed(data, "language")
    tags += [
        f"{key}:{value}" for key in ("license", "task_categories", "size_categories") for value in _listed(data, key)
    ]
    return list(dict.fromkeys(map(str, tags)))


def _listed(data: dict, key: str) -> list:
    value = data.get(key) or []
    return value if isinstance(value, list) else [value]
