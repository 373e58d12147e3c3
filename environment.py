"""What a result was obtained with: the versions of libraries, and the hardware."""

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch


def library_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the versions of libraries; "not installed" for those that are not."""
    versions = {}
    for library in libraries:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def processor_name() -> str:
    """Return the name of the processor, or its architecture where the system does not tell the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def hardware() -> str:
    """Return the name of the GPU, or the processor's architecture and cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"
