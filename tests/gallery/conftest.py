import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gallery_export import Evaluated, evaluate_all


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory) -> Evaluated:
    return evaluate_all(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture
def copied(evaluated, tmp_path) -> Evaluated:
    """Folders of results, and of clips, that a test may change. The results still name the clips of `evaluated`."""
    copies = {name: tmp_path / "copied" / name for name in ("data", "nano", "fewer", "published")}
    for name, copy in copies.items():
        shutil.copytree(getattr(evaluated, name), copy)
    return replace(evaluated, **copies)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A stand-in for the built page."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text('<!doctype html><title>Gallery</title><script src="data/gallery.js"></script>')
    (folder / "icon.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    return folder
