"""
Checks of the metadata at the head of a README, and of `.eval_results`, as the Hub makes them. What the Hub refuses is
an error, what it does not know a warning.
"""

import re
import unicodedata

import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .known_values import COLORS, LICENSES, RELATIONS, SDKS, SIZES, TASKS

Found = list[str]


def read_metadata(text: str) -> object:
    return yaml.safe_load(text)


def card_header(readme: str) -> str | None:
    """Return the YAML between the two lines of dashes; None if there is none."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", readme, re.DOTALL | re.MULTILINE)
    return found[1] if found else None


def check_metadata(readme: str, kind: str) -> tuple[Found, Found]:
    """Return the errors and the warnings of the card of a `model`, `dataset` or `space`."""
    header = card_header(readme)
    try:
        data = read_metadata(header or "")
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {' '.join(str(error).split())}"], []
    if data is None and kind != "space":
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data or {}, dict):
        return ["The metadata must be a mapping of names to values"], []
    check = {"model": _check_model, "dataset": _check_dataset, "space": _check_space}[kind]
    errors, warnings = check(data or {})
    return _check_shared(data or {}) + errors, warnings


def check_results(text: str) -> Found:
    """Return what is wrong with a file of `.eval_results`."""
    try:
        parse_eval_result_entries(read_metadata(text))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"Invalid results: {type(error).__name__}: {' '.join(str(error).split())}"]
    return []


def _check_shared(data: dict) -> Found:
    licenses = f'"license" must be one of [{", ".join(LICENSES)}, array]'
    return [
        *_check_items(data, "license", lambda value: value in LICENSES, licenses),
        *_check_items(data, "tags", _is_text, '"tags" must be a list of strings', only_lists=True),
        *_check_items(data, "language", _is_language, '"language" must be a list of codes of two or three letters'),
    ]


def _check_model(data: dict) -> tuple[Found, Found]:
    errors = [
        *_check_ids(data, "base_model", "model", "Use"),
        *_check_ids(data, "datasets", "dataset", "If possible, use"),
        *_check_choice(data, "base_model_relation", RELATIONS),
        *_check_text(data, "library_name", "pipeline_tag", "license_name", "license_link"),
    ]
    if "model-index" in data:
        errors += _check_index(data["model-index"])
    return errors, _check_tasks(data, "pipeline_tag")


def _check_dataset(data: dict) -> tuple[Found, Found]:
    sizes = f'"size_categories" must be one of [{", ".join(SIZES)}]'
    errors = _check_items(data, "size_categories", lambda value: value in SIZES, sizes)
    errors += _check_items(data, "task_categories", _is_text, '"task_categories" must be a list of strings')
    errors += _check_text(data, "pretty_name", "viewer_title")
    if "configs" in data:
        errors += _check_configs(data["configs"])
    return errors, _check_tasks(data, "task_categories")


def _check_space(data: dict) -> tuple[Found, Found]:
    errors = [] if "sdk" in data else ['"sdk" is required']
    errors += _check_choice(data, "sdk", SDKS)
    errors += _check_choice(data, "colorFrom", COLORS) + _check_choice(data, "colorTo", COLORS)
    errors += _check_text(data, "title", "sdk_version", "app_file", "short_description", "python_version")
    errors += _check_ids(data, "models", "model", "Use") + _check_ids(data, "datasets", "dataset", "Use")
    if "emoji" in data and not _is_emoji(data["emoji"]):
        errors.append('"emoji" must be an emoji')
    if len(str(data.get("short_description", ""))) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors, []


def _check_index(index: object) -> Found:
    """Check `model-index`: what was measured, on which data, and the values."""
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for place, model in _numbered(index, "model-index"):
        errors += _require(model, place, "name", "results")
        for where, result in _numbered(_get(model, "results"), f"{place}.results"):
            errors += _require(result, where, "task.type", "dataset.type", "dataset.name", "metrics")
            for spot, metric in _numbered(_get(result, "metrics"), f"{where}.metrics"):
                errors += _require(metric, spot, "type", "value")
    return errors


def _check_configs(configs: object) -> Found:
    if not isinstance(configs, list):
        return ['"configs" must be an array']
    errors = []
    for place, config in _numbered(configs, "configs"):
        errors += _require(config, place, "config_name")
        files = _get(config, "data_files")
        for where, entry in _numbered(files if isinstance(files, list) else None, f"{place}.data_files"):
            if not isinstance(entry, str):
                errors += _require(entry, where, "split", "path")
    return errors


def _check_ids(data: dict, key: str, kind: str, advice: str) -> Found:
    """Check names of repositories, of which a path on the author's machine is none."""
    values = data.get(key)
    return [
        f'"{place}" with value "{value}" is not valid. {advice} a {kind} id from https://hf.co/{kind}s.'
        for place, value in (_numbered(values, key) if isinstance(values, list) else [(key, values)])
        if key in data and not _is_id(value)
    ]


def _check_items(data: dict, key: str, is_valid, message: str, only_lists: bool = False) -> Found:
    """Check each of the values of a field, which may be a list or one value."""
    if key not in data:
        return []
    values = data[key] if isinstance(data[key], list) or only_lists else [data[key]]
    return [] if isinstance(values, list) and all(map(is_valid, values)) else [message]


def _check_choice(data: dict, key: str, choices: tuple[str, ...]) -> Found:
    return [f'"{key}" must be one of [{", ".join(choices)}]'] if key in data and data[key] not in choices else []


def _check_text(data: dict, *keys: str) -> Found:
    return [f'"{key}" must be a string' for key in keys if key in data and not _is_text(data[key])]


def _check_tasks(data: dict, key: str) -> Found:
    values = data.get(key) or []
    unknown = [value for value in (values if isinstance(values, list) else [values]) if value not in TASKS]
    return [f'The {key} "{value}" is not in the official list: {", ".join(TASKS)}' for value in unknown]


def _require(entry: object, place: str, *keys: str) -> Found:
    missing = [key for key in keys if _get(entry, *key.split(".")) is None]
    return [f'"{place}.{key}" is required' for key in missing]


def _get(entry: object, *keys: str) -> object:
    for key in keys:
        entry = entry.get(key) if isinstance(entry, dict) else None
    return entry


def _numbered(values: object, name: str) -> list[tuple[str, object]]:
    return [(f"{name}[{n}]", value) for n, value in enumerate(values)] if isinstance(values, list) else []


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_language(value: object) -> bool:
    return value in ("code", "multilingual") or (_is_text(value) and re.fullmatch("[a-z]{2,3}", value) is not None)


def _is_emoji(value: object) -> bool:
    """An emoji is a symbol with, it may be, a few marks that belong to it."""
    return _is_text(value) and 0 < len(value) <= 8 and unicodedata.category(value[0]) in ("So", "Sk")


def _is_id(value: object) -> bool:
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True
