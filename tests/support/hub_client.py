"""Clients of the local Hub: the environment of their processes, and the commands of `pllava` there."""

import subprocess
from pathlib import Path

import forked
from huggingface_hub import ModelCard
from local_hub import LocalHub


def online(hub: LocalHub, home: Path, token: str = "hf_x") -> dict[str, str]:
    """Return the environment of a process that has the local Hub, and nothing in its cache."""
    options = {"HF_ENDPOINT": str(hub), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return {**options, "HF_HOME": str(home), "HF_TOKEN": token, "HF_MODULES_CACHE": str(home / "modules")}


def run(hub: LocalHub, folder: Path, *arguments: object, token: str = "hf_x") -> subprocess.CompletedProcess:
    """Run Python or `pllava` as in [`forked`], in `folder`, and expect that it succeeds."""
    result = try_run(hub, folder, *arguments, token=token)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def try_run(hub: LocalHub, folder: Path, *arguments: object, token: str = "hf_x") -> subprocess.CompletedProcess:
    return forked.run(*arguments, cwd=folder, **online(hub, folder / "home", token))


def error_of(hub: LocalHub, folder: Path, *arguments: object, token: str = "hf_x") -> str:
    """Run a command that must fail with one line."""
    result = try_run(hub, folder, *arguments, token=token)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.returncode and len(lines) == 1 and "Traceback" not in result.stderr, result.stderr[-3000:]
    return lines[0]


def card_of(hub: LocalHub, repo_id: str) -> ModelCard:
    """Return the card of a model on the Hub."""
    return ModelCard.load(hub.folder / repo_id / "README.md")


def commits(hub: LocalHub) -> list[str]:
    """Return the messages of all commits to the Hub, but not those that create repositories."""
    file = hub.folder / ".commits"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
