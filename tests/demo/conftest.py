"""nano, an adapter of it, an engine, and clips of nano's world."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoProcessor

import pllava
from pllava import NANO, lora_config
from pllava.demo import worlds
from pllava.demo.engine import Engine
from pllava.media import MediaGate

ALPHA = 8.0


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The folder that the gate opens."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="session")
def gate(folder) -> MediaGate:
    return MediaGate(allowed_local_media_path=[folder])


@pytest.fixture(scope="session")
def nano_processor():
    return AutoProcessor.from_pretrained(NANO)


@pytest.fixture(scope="session")
def engine(gate, nano_processor) -> Engine:
    return Engine(pllava.load_model(NANO), nano_processor, gate)


@pytest.fixture(scope="session")
def clip(folder):
    return worlds.roll(folder, 40)


@pytest.fixture(scope="session")
def picture(folder):
    return worlds.picture(folder, 40)


@pytest.fixture(scope="session")
def adapter(tmp_path_factory) -> Path:
    """The folder of an adapter of nano with random weights, which changes its answers."""
    torch.manual_seed(0)
    model = get_peft_model(pllava.load_model(NANO), lora_config(r=4, lora_alpha=ALPHA))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    directory = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(directory)
    return directory
