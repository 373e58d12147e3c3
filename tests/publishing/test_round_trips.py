"""
To the Hub and back: what is pushed arrives, by its commit, where only transformers, torch, torchvision and av are
installed, with the same logits and answers. `pytest -m slow -s` prints the table.
"""

import hashlib
import json
import time

import pytest
import torch
from bare_environment import run_bare
from hub_client import online, run
from local_hub import local_hub
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoProcessor, pipeline

import pllava
from pllava.adapters import lora_config, plain_model
from pllava.nano.world.rendering import render

pytestmark = pytest.mark.slow

QUESTION = "What happens in the video?"
# Loads a repository by its commit, and writes logits and answers
LOAD = """
import json, sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

kind, repo_id, revision, clip, question, out = sys.argv[1:]
pinned = {"revision": revision, "trust_remote_code": True}
processor = AutoProcessor.from_pretrained(repo_id, **pinned)
content = [{"type": "video", "path": clip}, {"type": "text", "text": question}]
chat = [{"role": "user", "content": content}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
tensors, answers = {"pixels": inputs["pixel_values_videos"], "ids": inputs["input_ids"]}, {}
if kind != "processor":
    if kind == "adapter":
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(repo_id, **pinned)
    else:
        model = AutoModelForImageTextToText.from_pretrained(repo_id, **pinned)
    with torch.no_grad():
        tensors["logits"] = model(**inputs).logits
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    answers["generate"] = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
if kind == "model":
    options = {"model": repo_id, **pinned, "max_new_tokens": 6}
    video = pipeline("video-text-to-text", **options)
    answers["video-text-to-text"] = video(clip, text=question)[0]["generated_text"]
    for task in ("image-text-to-text", "any-to-any"):
        answers[task] = pipeline(task, **options)(text=chat, return_full_text=False)[0]["generated_text"]
for name in ("pllava", "datasets", "trl"):
    assert name not in sys.modules
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(out, "tensors.safetensors"))
Path(out, "answers.json").write_text(json.dumps(answers))
"""
COPY = """
from transformers import AutoModelForImageTextToText, AutoProcessor

for auto in (AutoModelForImageTextToText, AutoProcessor):
    auto.from_pretrained("me/original", trust_remote_code=True).push_to_hub("me/copy")
"""
LOAD_ROWS = """
import hashlib, json, sys

from datasets import load_dataset

rows = load_dataset(sys.argv[1], split="train", revision=sys.argv[2], streaming=True)
for row in rows:
    for clip in row.pop("videos", [row.pop("video", None)]):
        print(json.dumps([hashlib.sha256(clip["bytes"]).hexdigest(), row.get("caption") or row["messages"]]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a local Hub, and what is pushed to it: `sharded`, `adapter`, `processor`, clips and captions."""
    folder = tmp_path_factory.mktemp("round_trips")
    (folder / "hub").mkdir()
    render(folder / "world", 3, seed=7)
    with local_hub(folder / "hub") as hub:
        yield folder, hub


@pytest.fixture(scope="module")
def clip(clips):
    return str(clips[0])


@pytest.fixture(scope="module")
def sharded(checkpoint, world):
    folder, _ = world
    pllava.load_model(checkpoint, check=False).save_pretrained(folder / "sharded", max_shard_size="60KB")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(folder / "sharded")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 3
    return folder / "sharded"


@pytest.fixture(scope="module")
def adapter(sharded, processor, world):
    folder, _ = world
    torch.manual_seed(0)
    model = get_peft_model(pllava.load_model(str(sharded), check=False), lora_config(r=4, lora_alpha=8))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder / "adapter")
    processor.save_pretrained(folder / "adapter")
    return folder / "adapter"


TABLE = []


def round_trip(world, kind, name, repo_id, clip, model=None, processor=None):
    """Pull a repository by the commit before a later one, and compare with this process' model and processor."""
    folder, hub = world
    repository = hub.find("models", repo_id)
    commit = repository.resolve("main")
    (hub.folder / repo_id / "later.txt").write_text("A later commit.")
    assert hub.find("models", repo_id).resolve("main") != commit
    out = folder / "out" / repo_id
    out.mkdir(parents=True)
    start = time.monotonic()
    packages = ("peft", "accelerate") if kind == "adapter" else ()
    environment = online(hub, folder / f"home-{repo_id.split('/')[1]}")
    result = run_bare(LOAD, kind, repo_id, commit, clip, QUESTION, out, packages=packages, **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    seconds = time.monotonic() - start
    tensors, answers = load_file(out / "tensors.safetensors"), json.loads((out / "answers.json").read_text())

    chat = [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": QUESTION}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(tensors["pixels"], inputs["pixel_values_videos"])
    assert torch.equal(tensors["ids"], inputs["input_ids"])
    if model is not None:
        with torch.no_grad():
            assert torch.equal(tensors["logits"], model(**inputs).logits)
        pipe = pipeline("video-text-to-text", plain_model(model), processor=processor, max_new_tokens=6)
        expected = pipe(clip, text=QUESTION)[0]["generated_text"]
        assert set(answers.values()) == {expected} and len(answers) == (4 if kind == "model" else 1)
    equal = "pixels, ids" if model is None else f"pixels, ids, logits, {len(answers)} answers"
    TABLE.append((name, commit[:7], equal, f"{seconds:.1f} s"))


def test_a_model_in_shards(world, sharded, clip):
    folder, hub = world
    run(hub, folder, "pllava", "push", sharded, "me/sharded")
    loaded = pllava.load_model(str(sharded), check=False)
    round_trip(world, "model", "model in shards", "me/sharded", clip, loaded, AutoProcessor.from_pretrained(sharded))


def test_a_copy_that_remote_code_has_pushed(world, sharded, clip):
    """`push_to_hub` of a model and a processor, where only their remote code is: the copy refers to no other code."""
    folder, hub = world
    run(hub, folder, "pllava", "push", sharded, "me/original")
    result = run_bare(COPY, packages=(), **online(hub, folder / "home-copying"))
    assert result.returncode == 0, result.stderr[-3000:]
    config = json.loads((hub.folder / "me" / "copy" / "config.json").read_text())
    assert not [name for name in config["auto_map"].values() if "--" in name]
    assert "video-text-to-text" in (hub.folder / "me" / "copy" / "README.md").read_text()
    loaded = pllava.load_model(str(sharded), check=False)
    round_trip(world, "model", "copy by remote code", "me/copy", clip, loaded, AutoProcessor.from_pretrained(sharded))


def test_a_processor_alone(world, sharded, clip):
    folder, hub = world
    processor = AutoProcessor.from_pretrained(sharded)
    processor.save_pretrained(folder / "processor")
    run(hub, folder, "pllava", "push", "processor", "me/processor")
    round_trip(world, "processor", "processor alone", "me/processor", clip, processor=processor)


def test_an_adapter(world, sharded, adapter, clip):
    folder, hub = world
    run(hub, folder, "pllava", "push", sharded, "me/base")
    run(hub, folder, "pllava", "push", adapter, "me/adapter", "--base-model", "me/base")
    loaded = pllava.load_model(str(sharded), str(adapter))
    round_trip(world, "adapter", "adapter", "me/adapter", clip, loaded, AutoProcessor.from_pretrained(adapter))


def test_a_merged_model(world, sharded, adapter, clip):
    folder, hub = world
    run(hub, folder, "pllava", "convert", sharded, "merged", "--adapter", adapter, "--alpha", "4")
    run(hub, folder, "pllava", "push", "merged", "me/merged")
    loaded = pllava.load_model(str(folder / "merged"))
    processor = AutoProcessor.from_pretrained(sharded)
    round_trip(world, "model", "merged model", "me/merged", clip, loaded, processor)
    run(hub, folder, "-m", "huggingface_hub.cli.hf", "upload", "me/by-hand", "merged")
    round_trip(world, "model", "merged, by `hf upload`", "me/by-hand", clip, loaded, processor)


def test_what_trainers_push(world, sharded, clip):
    """An adapter, by `pllava train`, on a model of the Hub; and a model that was trained whole."""
    folder, hub = world
    run(hub, folder, "pllava", "push", sharded, "me/start")
    options = ["--datasets", "world/questions.jsonl", "--model", "me/start", "--max_steps", "2", "--use_cpu", "true"]
    options += [
        "--per_device_train_batch_size",
        "2",
        "--bf16",
        "false",
        "--report_to",
        "none",
        "--push_to_hub",
        "true",
    ]
    run(hub, folder, "pllava", "train", *options, "--output_dir", "tuned", "--lora_r", "4")
    run(hub, folder, "pllava", "train", *options, "--output_dir", "whole", "--use_peft", "false")
    processor = AutoProcessor.from_pretrained(sharded)
    tuned = pllava.load_model(str(sharded), str(folder / "tuned"))
    round_trip(world, "adapter", "trainer's adapter", "me/tuned", clip, tuned, processor)
    whole = pllava.load_model(str(folder / "whole"), dtype="auto")
    round_trip(world, "model", "trainer's whole model", "me/whole", clip, whole, processor)


def test_training_data_and_captions(world, sharded):
    folder, hub = world
    run(hub, folder, "pllava", "data", "push", "world/questions.jsonl", "me/clips")
    arguments = ["world/clips", "--out", "captions.jsonl", "--model", sharded, "--max-new-tokens", "4"]
    run(hub, folder, "pllava", "caption", *arguments, "--push", "me/captions", "--push-clips")
    hashes = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (folder / "world" / "clips").iterdir()}
    captions = [json.loads(line)["caption"] for line in (folder / "captions.jsonl").read_text().splitlines()]
    questions = (folder / "world" / "questions.jsonl").read_text().splitlines()
    for name, expected in (("clips", len(questions)), ("captions", len(captions))):
        commit = hub.find("datasets", f"me/{name}").resolve("main")
        (hub.folder / "datasets" / "me" / name / "later.txt").write_text("A later commit.")
        environment = online(hub, folder / f"home-{name}")
        start = time.monotonic()
        result = run_bare(LOAD_ROWS, f"me/{name}", commit, packages=("datasets",), **environment)
        assert result.returncode == 0, result.stderr[-3000:]
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(rows) == expected and {digest for digest, _ in rows} == hashes
        if name == "captions":
            assert sorted(text for _, text in rows) == sorted(captions)
        TABLE.append(
            (
                f"{name} (dataset)",
                commit[:7],
                f"{len(rows)} rows, bytes of the clips",
                f"{time.monotonic() - start:.1f} s",
            )
        )


def test_the_table(capsys):
    """Prints what the tests before it have compared; it is last."""
    with capsys.disabled():
        print(f"\n{'pushed and pulled':24}{'commit':10}{'equal':44}{'loaded in':>10}")
        for name, commit, equal, seconds in TABLE:
            print(f"{name:24}{commit:10}{equal:44}{seconds:>10}")
    assert len(TABLE) == 10
