"""What the tests share: a tiny random PLLaVA with its processor and checkpoint, and small encoded clips."""

import os
import shutil
import tempfile

# Before transformers is imported: no network, and remote code is copied to a place of this run's own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"  # tests/support/local_hub takes large files as Git LFS, and has no Xet server
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf_modules_")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes run tests

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family, make_config, make_processor
from model_inputs import TOKENS
from video_files import moving_frames, write_video

import pllava


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def family(request: pytest.FixtureRequest) -> Family:
    """CLIP and Llama, but for tests that ask for another one; those in tests/model run for each."""
    return FAMILIES[getattr(request, "param", "clip-llama")]


@pytest.fixture(scope="session")
def processor(family: Family) -> pllava.PllavaProcessor:
    return make_processor(family)


@pytest.fixture(scope="session")
def config(family: Family, processor: pllava.PllavaProcessor) -> pllava.PllavaConfig:
    return make_config(family, processor)


@pytest.fixture(scope="session")
def model(config: pllava.PllavaConfig) -> pllava.PllavaForConditionalGeneration:
    """In float32, for reading only: tests that change it take a copy."""
    torch.manual_seed(0)
    model = pllava.PllavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = (
        None  # random weights end an answer anywhere: let them all run to their limit
    )
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model


@pytest.fixture(scope="session")
def checkpoint(
    model: pllava.PllavaForConditionalGeneration,
    processor: pllava.PllavaProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The path of a directory with the model and its processor, as `from_pretrained` takes it."""
    directory = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def answer(model: pllava.PllavaForConditionalGeneration, processor: pllava.PllavaProcessor) -> Callable[..., str]:
    """What the model itself says to one chat, at most `TOKENS` tokens."""

    def generate(messages: list[dict], **processor_kwargs) -> str:
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=processor_kwargs,
        )
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return generate


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three mp4 files of 20, 30 and 40 frames at 10 frames a second, 48 x 64 pixels."""
    directory = tmp_path_factory.mktemp("clips")
    return [
        write_video(directory / f"{seed}.mp4", moving_frames(20 + 10 * seed, seed=seed), fps=10) for seed in range(3)
    ]
