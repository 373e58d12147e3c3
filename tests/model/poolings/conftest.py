"""The poolings of the tests in this folder, each with the models of all families."""

import copy

import pytest

from pllava import PllavaForConditionalGeneration, PllavaProcessor
from pllava.model_pooling import choose_pooling, set_pooling
from pllava.pooling_pllava import Pooling

Pair = tuple[PllavaForConditionalGeneration, PllavaProcessor]


@pytest.fixture(scope="module", params=["average-3x3x2", "slowfast-2x5x3+6x2x2", "merge-3x4x2"])
def pooling(request: pytest.FixtureRequest, model: PllavaForConditionalGeneration) -> Pooling:
    """Of six frames."""
    return choose_pooling(model.config, request.param, num_frames=6)


@pytest.fixture(scope="module")
def pair(pooling: Pooling, model: PllavaForConditionalGeneration, processor: PllavaProcessor) -> Pair:
    """A model and a processor with this pooling."""
    model, processor = copy.deepcopy(model), copy.deepcopy(processor)
    set_pooling(model, processor, pooling)
    return model, processor
