"""A Gradio Space: the chat of `pllava demo` with a model, or an adapter, that is on the Hub."""

import shutil
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, SpaceCard, SpaceCardData
from jinja2 import Environment, FileSystemLoader
from packaging.requirements import Requirement

from ..uploading import explaining_errors

TEMPLATES = Path(__file__).parent
PACKAGES = ("transformers", "torch", "torchvision", "av", "accelerate")
# What the chat needs of this package. A Space gets a copy, so it needs no release of the package that fits.
PROJECT = Path(__file__).parents[2]
CODE = (
    "*.py",
    "demo/*.py",
    "demo/page/*.*",
    "media/*.py",
    "nano/__init__.py",
    "nano/checkpoint/config.json",
    "nano/world/__init__.py",
    "nano/world/drawing.py",
    "nano/world/questions.py",
    "nano/world/scenes.py",
)
PRELOADED = (".jinja", ".json", ".model", ".py", ".safetensors", ".txt")  # what loading a model reads


def write_space(
    folder: Path, repo_id: str, revision: str | None, base_model: str | None = None, title: str | None = None
) -> None:
    """
    Write the files of a Space into `folder`: app.py, the code of the chat, requirements.txt, and README.md with the
    Space's metadata. The app loads fixed commits: a later push does not change it.

    Args:
        repo_id: A model on the Hub or, with `base_model`, an adapter.
        revision: The branch or commit of it; by default the newest commit.
        base_model: The Hub id of the adapter's base model. It is taken at the revision that the adapter's config
            names; by default at the newest commit.
        title: By default the name of the repository.

    Raises:
        OSError: if the Hub cannot be reached, or has no such repository or revision: the message says what to do.
        ValueError: if there is a `base_model`, and `repo_id` is no adapter.
    """
    pushed = _look_up(repo_id, revision)
    base = base_model and _look_up(base_model, _base_revision(pushed))
    loaded = [pushed, base] if base else [pushed]
    packages = {requirement.name: requirement.specifier for requirement in map(Requirement, requires("pllava"))}
    values = {"title": title or repo_id.split("/")[-1], "pushed": pushed, "base": base}

    gradio = next(bound.version for bound in packages["gradio"] if bound.operator == ">=")
    data = _metadata(values["title"], gradio, loaded)
    card = SpaceCard.from_template(data, template_path=str(TEMPLATES / "README.md"), **values)
    card.save(folder / "README.md")

    wanted = [*PACKAGES, "peft"] if base else PACKAGES
    lines = [*(f"{name}{packages[name]}" for name in wanted), "spaces"]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    template = Environment(loader=FileSystemLoader(TEMPLATES), keep_trailing_newline=True).get_template("app.py.jinja")
    (folder / "app.py").write_text(template.render(values), encoding="utf-8")
    for pattern in CODE:
        for file in PROJECT.glob(pattern):
            copy = folder / "pllava" / file.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _metadata(title: str, gradio: str, loaded: list[ModelInfo]) -> SpaceCardData:
    pushed = loaded[0]
    return SpaceCardData(
        title=title,
        emoji="🎬",
        colorFrom="indigo",
        colorTo="blue",
        sdk="gradio",
        sdk_version=gradio,
        python_version="3.12.12",  # the newest that ZeroGPU has
        app_file="app.py",
        short_description="Ask questions about a video",  # 60 characters at most
        suggested_hardware="zero-a10g",
        license=pushed.card_data.license if pushed.card_data else None,
        models=[info.id for info in loaded],
        preload_from_hub=[_preload(info) for info in loaded],
        pinned=False,
    )


def _look_up(repo_id: str, revision: str | None) -> ModelInfo:
    with explaining_errors(repo_id):
        return HfApi().model_info(repo_id, revision=revision)


def _base_revision(adapter: ModelInfo) -> str | None:
    from peft import PeftConfig

    with explaining_errors(adapter.id):
        return PeftConfig.from_pretrained(adapter.id, revision=adapter.sha).revision


def _preload(info: ModelInfo) -> str:
    """Say what to download when the Space is built. The Hub wants the names of files where a commit is named."""
    names = [file.rfilename for file in info.siblings]
    files = [name for name in names if "/" not in name and name.endswith(PRELOADED)]
    return f"{info.id} {','.join(files)} {info.sha}"
