from pathlib import Path

import pytest

from pllava.nano.world.rendering import render


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 clips and their questions, which no test changes."""
    directory = tmp_path_factory.mktemp("world")
    render(directory, clips=48, seed=1)
    return directory
