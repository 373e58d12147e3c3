"""The tests of this folder run for each family of models."""

from collections.abc import Callable
from functools import partial

import model_inputs
import pytest
import torch
from families import FAMILIES

import pllava


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES, indirect=True, scope="session")


@pytest.fixture(scope="session")
def pixels(config: pllava.PllavaConfig) -> Callable[..., torch.Tensor]:
    """Return a function that makes videos of the model's size."""
    return partial(model_inputs.pixels, size=config.image_size)
