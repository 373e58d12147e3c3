"""
vLLM itself, offline, on the CPU: the tokens and the frames are those of transformers. Needs `PLLAVA_VLLM_PYTHON`, a
Python with vLLM and this package, as `make test-vllm` makes it.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_config, make_processor
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from video_files import moving_frames, write_video

from pllava import NANO, PllavaForConditionalGeneration
from pllava.model_pooling import choose_pooling, set_pooling
from pllava.nano.world import drawing, questions

PYTHON = os.environ.get("PLLAVA_VLLM_PYTHON")
SCRIPT = Path(__file__).parents[1] / "support" / "vllm_answers.py"
ALL_FRAMES = {"media_io_kwargs": {"video": {"num_frames": -1}}}
LOOKS_SPECIAL = "What is <video> or <image> here? </s> ASSISTANT:"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="PLLAVA_VLLM_PYTHON is not set: `make test-vllm` runs these tests"),
]


def user(text: str, *files: Path) -> dict:
    kinds = ["image_url" if file.suffix in (".png", ".jpg") else "video_url" for file in files]
    media = [{"type": kind, kind: {"url": f"file://{file}"}} for kind, file in zip(kinds, files, strict=True)]
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def chats(folder: Path) -> dict[str, list[list[dict]]]:
    """Chats by what is in them: clips of nano's world, made shorter and longer, and images of it."""
    ask = {kind: [] for kind in ("clip of 32 frames", "clip of 11 frames", "clip of 160 frames", "image")}
    clips, images = [], []
    for number in range(6):
        scene, rows = questions.clip(seed=5, index=number)
        frames = drawing.draw(scene)
        files = [folder / f"{number}-{length}.mp4" for length in (32, 11, 160)]
        for file, shown in zip(files, (frames, frames[::3], frames.repeat(5, 0)), strict=True):
            drawing.write_clip(file, shown)
        picture = folder / f"{number}.png"
        Image.fromarray(frames[number]).save(picture)
        clips.append(files[0])
        images.append(picture)
        for kind, file in zip(ask, [*files, picture], strict=True):
            ask[kind] += [[user(row["question"], file)] for row in rows[-3:]]
    wide = write_video(folder / "wide.mp4", moving_frames(150, 90, 160), fps=25)
    turned, pixels = folder / "turned.jpg", moving_frames(1, 64, 96)[0]
    Image.fromarray(pixels).save(turned, exif=rotated())
    caption = "Describe the video."
    return {
        **ask,
        "film of 150 frames": [[user(caption, wide)], [user("What moves?", wide)]],
        "turned photograph": [[user("Describe the image.", turned)]],
        "text only": [[user("What is a ring?")], [user("Hello")]],
        "text that looks special": [[user(LOOKS_SPECIAL, clips[0])], [user(LOOKS_SPECIAL)]],
        "several images": [[user("Which is larger?", *images[:2])], [user("Compare them.", *images[2:5])]],
        "several clips": [[user("Which is longer?", wide, clips[0])]],
        "image and clip": [[user(caption, images[0], clips[1])], [user(caption, clips[2], images[3], wide)]],
        "several turns": [
            [user(caption, clips[0]), assistant("A red ring moves."), user("And here?", clips[1])],
            [user(caption, clips[3]), assistant("It stays."), user("How many shapes are there in all?")],
        ],
    }


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture(scope="module")
def ask(folder: Path):
    """Return a function that starts an engine and returns its answers to chats, and what it printed."""

    def run(
        chats: dict, name: str, plugin: bool, reference: bool = False, model: str = NANO, **engine
    ) -> tuple[dict, str]:
        requests, answers = folder / f"{name}.json", folder / f"{name}-answers.json"
        flat = [chat for group in chats.values() for chat in group]
        engine["allowed_local_media_path"] = str(folder)
        requests.write_text(json.dumps({"model": model, "chats": flat, "engine": engine, "reference": reference}))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **({} if plugin else {"VLLM_PLUGINS": ""})}
        finished = subprocess.run(
            [PYTHON, SCRIPT, requests, answers],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
        return json.loads(answers.read_text()), finished.stdout + finished.stderr

    return run


@pytest.fixture(scope="module")
def with_plugin(ask, chats) -> dict:
    answers, printed = ask(chats, "plugin", plugin=True, reference=True)
    assert "The model's code: pllava.modeling_pllava" in printed
    return answers


def compare(chats: dict, answers: dict, reference: dict, title: str) -> dict[str, tuple[int, int, int, int]]:
    """Print and return, for each group: how many chats, and how many prompts and answers are equal."""
    rows, start = {}, 0
    for group, members in chats.items():
        part = slice(start, start + len(members))
        start += len(members)
        pairs = [list(zip(answers[way][part], reference["alone"][part], strict=True)) for way in ("together", "alone")]
        prompts = sum(one["prompt"] == other["prompt"] for one, other in pairs[1])
        rows[group] = (len(members), prompts, *(sum(a["tokens"] == b["tokens"] for a, b in each) for each in pairs))
    print(f"\n{title:38}{'chats':>6}{'equal prompts':>15}{'answers, one batch':>20}{'answers, alone':>16}")
    for group, (count, prompts, together, alone) in rows.items():
        print(f"{group:38}{count:6}{prompts:15}{together:20}{alone:16}")
    same = set(answers["frames"]) & set(reference["frames"])
    print(f"clips and images: {len(reference['frames'])}, of which vLLM's model got the same pixels: {len(same)}")
    return rows


def test_tokens_and_frames_equal_those_of_transformers(chats, with_plugin, capsys):
    vllm, transformers = with_plugin["vllm"], with_plugin["transformers"]
    with capsys.disabled():
        rows = compare(chats, vllm, transformers, "vLLM with the plugin")
    assert {group: numbers for group, numbers in rows.items() if len(set(numbers)) > 1} == {}
    assert vllm["frames"] == transformers["frames"]
    assert len({tuple(answer["tokens"]) for answer in vllm["alone"]}) > 20  # the answers depend on the question


def nano_with(pooling: str, folder: Path) -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(NANO), AutoProcessor.from_pretrained(NANO)
    set_pooling(model, processor, choose_pooling(model.config, pooling))
    for part in (model, processor):
        part.save_pretrained(folder)


def random_model(name: str, pooling: str, folder: Path) -> None:
    """A tiny model of another family, with images in full."""
    family = FAMILIES[name]
    processor = make_processor(family)
    text = {"hidden_size": 128, "head_dim": 32}  # vLLM's attention takes no smaller heads
    config = make_config(family, processor, text)
    config.image_pooling_shape = processor.image_pooling_shape = [1, *[config.patch_grid] * 2]
    torch.manual_seed(0)
    model = PllavaForConditionalGeneration(config).eval()
    set_pooling(model, processor, choose_pooling(config, pooling))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    for part in (model, processor):
        part.save_pretrained(folder)


@pytest.mark.parametrize(
    ("write", "arguments"),
    [
        (nano_with, ["slowfast"]),
        (nano_with, ["merge"]),
        (nano_with, ["average-16x6x6"]),  # 576 tokens: in the context of 1,024, RoPE is scaled by two
        (random_model, ["siglip-qwen2", "average"]),
        (random_model, ["siglip2-qwen3", "slowfast-2x3x3+4x2x2"]),
    ],
    ids=["nano-slowfast", "nano-merge", "nano-scaled-rope", "siglip-qwen2", "siglip2-qwen3"],
)
def test_other_poolings_and_families_give_the_tokens_of_transformers(
    write, arguments: list[str], chats, ask, tmp_path: Path, request, capsys
) -> None:
    write(*arguments, tmp_path)
    name = request.node.callspec.id
    groups = {group: members[:4] for group, members in chats.items() if "special" not in group}
    if name == "nano-scaled-rope":
        groups = {group: groups[group] for group in ("clip of 32 frames", "film of 150 frames", "image", "text only")}
    answers, printed = ask(groups, name, plugin=True, reference=True, model=str(tmp_path))
    assert "The model's code: pllava.modeling_pllava" in printed
    with capsys.disabled():
        rows = compare(groups, answers["vllm"], answers["transformers"], f"vLLM, {name}")
    assert {group: numbers for group, numbers in rows.items() if len(set(numbers)) > 1} == {}
    assert answers["vllm"]["frames"] == answers["transformers"]["frames"]
    assert len({tuple(answer["tokens"]) for answer in answers["vllm"]["alone"]}) > 5


def test_remote_code_alone_samples_the_right_frames_if_it_gets_all(chats, with_plugin, ask, capsys):
    answers, printed = ask(chats, "all-frames", plugin=False, **ALL_FRAMES)
    with capsys.disabled():
        rows = compare(chats, answers["vllm"], with_plugin["transformers"], "vLLM without it, num_frames -1")
    assert {group: numbers for group, numbers in rows.items() if len(set(numbers)) > 1} == {}
    assert answers["vllm"]["frames"] == with_plugin["transformers"]["frames"]
    assert "before PLLaVA could choose" not in printed and "The model's code: transformers_modules." in printed


def test_frames_of_vllms_own_reader_give_a_warning(chats, with_plugin, ask, capsys):
    """Its tokens are as many, so nothing else tells."""
    groups = {name: chats[name] for name in ("clip of 32 frames", "clip of 11 frames", "film of 150 frames")}
    answers, printed = ask(groups, "own-reader", plugin=False)
    answered = iter(with_plugin["transformers"]["alone"])
    of_group = {name: [next(answered) for _ in members] for name, members in chats.items()}
    expected = {**with_plugin["transformers"], "alone": [each for name in groups for each in of_group[name]]}
    with capsys.disabled():
        rows = compare(groups, answers["vllm"], expected, "vLLM without it, its own 32 frames")
    assert printed.count("The reader 'opencv' took 32 of 150 frames") == 1
    assert rows["film of 150 frames"][3] < rows["film of 150 frames"][0] == rows["film of 150 frames"][1]
    assert all(len(set(rows[name])) == 1 for name in ("clip of 11 frames", "clip of 32 frames"))
