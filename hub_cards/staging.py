"""The files of a model, an adapter or a processor as they are published, in a folder made of links to large files."""

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from ..adapters import ALPHA_FILE
from ..checkpoint_files import read_shard_index
from ..files import read_object
from ..model_card_pllava import is_generated, sign
from ..origins import CARD, ModelSource
from .cards.model_card import ADAPTER_FOLDER, build_model_card, read_alphas
from .cards.rendering import METHOD_FIGURE
from .cards.results_section import keep_results, read_card

MODEL_FILES = ["*.safetensors", "*.json", "*.py", "*.jinja", "*.md", "*.model", "*.txt", "*.png"]
RESUME_FILES = ["trainer_state.json", "data_state_*"]  # of a checkpoint: only a resumed run reads these
PACKAGE = Path(__file__).parents[1]


def check_complete(directory: Path) -> None:
    """
    Raises:
        ValueError: if the directory has no model, adapter or processor, or lacks some of the weights.
    """
    names = {file.name for file in directory.iterdir()} if directory.is_dir() else set()
    if not names & {CONFIG_NAME, ADAPTER_CONFIG_NAME, PROCESSOR_NAME}:
        raise ValueError(
            f"{directory}: no {CONFIG_NAME}, {ADAPTER_CONFIG_NAME} or {PROCESSOR_NAME}; give the folder of a model, "
            "an adapter or a processor"
        )
    if ADAPTER_CONFIG_NAME in names:
        needed = [ADAPTER_SAFE_WEIGHTS_NAME]
    elif SAFE_WEIGHTS_INDEX_NAME in names:
        needed = read_shard_index(directory / SAFE_WEIGHTS_INDEX_NAME)
    else:
        needed = [SAFE_WEIGHTS_NAME] if CONFIG_NAME in names else []
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"{directory}: lacks {', '.join(missing)}; weights are published as safetensors only")
    if needed and PROCESSOR_NAME not in names:
        raise ValueError(
            f"{directory}: no {PROCESSOR_NAME}, without which nobody can ask the model: save the processor there "
            f"(`processor.save_pretrained({str(directory)!r})`)"
        )


def stage_files(directory: Path, folder: Path, report: Callable[[str], None]) -> None:
    """Link the files of a model into a folder, with those of an adapter beside it; add the code if it is absent."""
    left_out = []
    for file in sorted(directory.iterdir()):
        if file.is_file() and _is_published(file.name):
            (folder / file.name).symlink_to(file.resolve())
        elif file.name == ADAPTER_FOLDER and (file / ADAPTER_CONFIG_NAME).exists():
            (folder / ADAPTER_FOLDER).mkdir()
            for part in sorted(file.iterdir()):
                if _is_published(part.name) and part.name not in (CARD, METHOD_FIGURE.name):
                    (folder / ADAPTER_FOLDER / part.name).symlink_to(part.resolve())
        else:
            left_out.append(file.name)
    if left_out:
        report(f"not part of the model, left out: {', '.join(left_out)}")
    if not list(folder.glob("*_pllava.py")):
        for file in PACKAGE.glob("*_pllava.py"):
            (folder / file.name).symlink_to(file)
    if not (folder / METHOD_FIGURE.name).exists():
        (folder / METHOD_FIGURE.name).symlink_to(METHOD_FIGURE)


def _is_published(name: str) -> bool:
    wanted, unwanted = (any(fnmatch(name, each) for each in patterns) for patterns in (MODEL_FILES, RESUME_FILES))
    return wanted and not unwanted and not name.startswith(("_", "."))


def stage_adapter_config(folder: Path, base: ModelSource, recommended: dict[str, float]) -> None:
    """
    Name an adapter's base by its id on the Hub and its commit, and write alpha.json.

    Args:
        recommended: The best alpha of each sweep, by the name of the benchmark.
    """
    config = read_object(folder / ADAPTER_CONFIG_NAME)
    named = {"base_model_name_or_path": base.repo_id, "revision": base.revision}
    alphas = read_alphas(folder)
    write(folder / ADAPTER_CONFIG_NAME, json.dumps(config | named, indent=2) + "\n")
    alphas["recommended"] |= recommended
    write(folder / ALPHA_FILE, json.dumps(alphas, indent=2) + "\n")


def stage_card(
    folder: Path, repo_id: str, base: ModelSource | None, revision: str | None, report: Callable[[str], None]
) -> str:
    """
    Return the card's text: that in the folder or on the Hub if it was written or edited by hand, else a new one.
    """
    cards = {"the folder": folder / CARD, repo_id: _card_on_hub(repo_id, revision)}
    for place, file in cards.items():
        card = file.read_text(encoding="utf-8") if file and file.exists() else ""
        if not is_generated(card):
            report(f"the card in {place} is kept: it was written or edited by hand")
            return card
    card = build_model_card(folder, repo_id, base)
    if published := cards[repo_id]:
        keep_results(card, read_card(published))
    return sign(str(card))


def _card_on_hub(repo_id: str, revision: str | None) -> Path | None:
    try:
        return Path(HfApi().hf_hub_download(repo_id, CARD, revision=revision))
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None


def write(file: Path, text: str) -> None:
    """Write a staged file in place of the link to the local one, which stays as it is."""
    file.unlink(missing_ok=True)
    file.write_text(text, encoding="utf-8")
