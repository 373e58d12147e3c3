"""Adapters from the Hub in all commands: which revision, which folder, which base model, and what is recorded."""

import json
import shutil

import forked
import hub_client
import pytest
import torch
from local_hub import local_hub
from peft import get_peft_model
from safetensors.torch import load_file, save_file

import pllava
from pllava.nano.world.rendering import render

SHORT = ["--max-new-tokens", "6"]
QUESTION = "What happens in the video?"


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    """A trained adapter of rank 4 whose base is `me/base` on the Hub."""
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(pllava.load_model(checkpoint), pllava.lora_config(r=4, lora_alpha=4))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    (folder / "alpha.json").write_text('{"training": 4}')
    return folder


@pytest.fixture(scope="module")
def hub(checkpoint, adapter, tmp_path_factory):
    """
    Serves `me/base`, whose commit `trained_on` has the checkpoint's weights and the newest one others; and
    `me/adapters`: one adapter in the root, with the tag v1 and a newer version, and another in the folder `second`.
    """
    folder = tmp_path_factory.mktemp("hub")
    with local_hub(folder) as hub:
        base, adapters = folder / "me" / "base", folder / "me" / "adapters"
        shutil.copytree(checkpoint, base)
        hub.trained_on = hub.find("models", "me/base").resolve("main")
        change_weights(base / "model.safetensors", "lm_head", -1)
        hub.newest_base = hub.find("models", "me/base").resolve("main")
        write(adapters, adapter, base_model_name_or_path="me/base", revision=hub.trained_on, lora_alpha=4)
        write(adapters / "second", adapter, base_model_name_or_path="me/base", revision=None, lora_alpha=2)
        repository = hub.find("models", "me/adapters")
        hub.v1 = repository.refs["refs/tags/v1"] = repository.resolve("main")
        repository.save()
        change_weights(adapters / "adapter_model.safetensors", "lora_B", -1)
        hub.newest = hub.find("models", "me/adapters").resolve("main")
        yield hub


def write(folder, adapter, **config):
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def change_weights(file, part, factor):
    weights = {name: value * factor if part in name else value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture
def online(hub, tmp_path):
    return {**hub_client.online(hub, tmp_path / "home"), "cwd": str(tmp_path)}


def succeed(*arguments, **options):
    result = forked.run(*arguments, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


# --- notation --------------------------------------------------------------------------------------------------------

FETCH = """
import json, sys
from pllava.adapters import fetch_adapter, find_base_model, read_adapter_config
from pllava.origins import directory_revision

for name in sys.argv[1:]:
    folder = fetch_adapter(name)
    alpha = read_adapter_config(folder).lora_alpha
    print(json.dumps([alpha, directory_revision(folder), (folder / "alpha.json").exists(), *find_base_model(folder)]))
"""


def test_the_name_has_a_revision_and_a_folder(hub, online):
    names = ["me/adapters", "me/adapters@v1", "me/adapters/second", "me/adapters@v1/second", f"me/adapters@{hub.v1}"]
    found = [json.loads(line) for line in succeed("-c", FETCH, *names, **online).splitlines()]
    root, second = ["me/base", hub.trained_on], ["me/base", None]
    assert found == [
        [4, hub.newest, True, *root],
        [4, hub.v1, True, *root],
        [2, hub.newest, True, *second],
        [2, hub.v1, True, *second],
        [4, hub.v1, True, *root],
    ]


def test_a_directory_comes_first(adapter, hub, online, tmp_path):
    write(tmp_path / "me" / "adapters", adapter, base_model_name_or_path="me/base", lora_alpha=1)
    local, remote = map(json.loads, succeed("-c", FETCH, "me/adapters", "me/adapters@v1", **online).splitlines())
    assert local[0] == 1 and len(local[1]) == 16, "a fingerprint"
    assert remote[:2] == [4, hub.v1]


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(checkpoint, adapter, clips, hub, tmp_path_factory):
    """The answers of the local model and adapter: of version 1 on its base, and of the newest one on its base."""
    options = ["chat", clips[0], QUESTION, *SHORT, "--model", checkpoint, "--adapter"]
    newest = tmp_path_factory.mktemp("newest") / "adapter"
    shutil.copytree(adapter, newest)
    change_weights(newest / "adapter_model.safetensors", "lora_B", -1)
    answers = [succeed("pllava", *options, folder).strip() for folder in (adapter, newest)]
    assert answers[0] != answers[1]
    return answers


def test_chat(clips, hub, online, expected):
    chat = ["pllava", "chat", clips[0], QUESTION, *SHORT]
    assert succeed(*chat, "--adapter", "me/adapters@v1", **online).strip() == expected[0]
    assert succeed(*chat, "--adapter", "me/adapters", **online).strip() == expected[1]
    base = ["--model", "me/base", "--revision", hub.trained_on]
    assert succeed(*chat, *base, "--adapter", "me/adapters@v1", **online).strip() == expected[0]
    other = succeed(*chat, "--model", "me/base", "--adapter", "me/adapters@v1", **online).strip()
    assert other != expected[0], "a model that is named is at its newest revision"


def test_captions_and_results_record_the_commits(clips, hub, online, tmp_path):
    options = ["--adapter", "me/adapters@v1"]
    succeed("pllava", "caption", clips[0], "--out", "captions.jsonl", *SHORT, *options, **online)
    render(tmp_path / "world", 1, seed=4)
    succeed("pllava", "eval", "--data", "world", "--limit", 2, *options, **online)
    row = json.loads((tmp_path / "captions.jsonl").read_text())
    run = json.loads((tmp_path / "results" / "nano" / "run.json").read_text())
    recorded = {"model": "me/base", "revision": hub.trained_on, "alpha": 4}
    recorded |= {"adapter": "me/adapters@v1", "adapter_revision": hub.v1}
    for each in (row, run):
        assert {name: each[name] for name in recorded} == recorded


def test_training_goes_on_and_keeps_the_revision_of_the_base(adapter, hub, online, tmp_path):
    render(tmp_path / "world", 1, seed=4)
    options = ["--datasets", "world/questions.jsonl", "--max_steps", 1, "--per_device_train_batch_size", 1]
    options += ["--bf16", "false", "--use_cpu", "true", "--report_to", "none", "--dataloader_num_workers", 0]
    train = ["-m", "pllava.train", *options, "--learning_rate", 0]
    succeed(*train, "--adapter", "me/adapters@v1", "--output_dir", "further", **online)
    succeed(*train, "--model", "me/base", "--revision", hub.trained_on, "--output_dir", "new", **online)
    for name, rank in (("further", 4), ("new", 128)):
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", hub.trained_on)
        assert config["r"] == rank
    further, first = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "further", adapter))
    assert all(torch.equal(value, first[name]) for name, value in further.items())


def test_convert_merges(checkpoint, adapter, clips, hub, online, expected, tmp_path):
    succeed("pllava", "convert", checkpoint, "merged", "--adapter", "me/adapters@v1", **online)
    assert succeed("pllava", "chat", clips[0], QUESTION, *SHORT, "--model", "merged", **online).strip() == expected[0]
    succeed("pllava", "convert", checkpoint, "weak", "--adapter", "me/adapters/second", "--keep-adapter", **online)
    origin = json.loads((tmp_path / "weak" / "config.json").read_text())["origin"]
    assert (origin["adapter"]["repo_id"], origin["adapter"]["revision"]) == ("me/adapters", hub.newest)
    assert json.loads((tmp_path / "weak" / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 2


# --- errors ----------------------------------------------------------------------------------------------------------

FOLDER = "The adapter's base model is {!r}, a folder of the machine on which it was trained: pass the model (--model)"
NOWHERE = "The adapter's base model {!r} is neither a folder here nor a model that the Hub provides: pass the model"
BASES = {
    "/elsewhere/pllava-base": FOLDER,
    "./pllava-base": FOLDER,
    "runs/2026/pllava-base": FOLDER,
    "runs/pllava-base": NOWHERE,
    None: "its config names no base model: pass the model (--model)",
}
NAMES = {
    "no/where@": "no/where@: neither a directory nor ORGANISATION/NAME[@REVISION][/FOLDER] of an adapter on the Hub",
    "me/nothing": "me/nothing: not a directory, and the Hub does not provide it",
    "me/adapters@v9": "me/adapters@v9: not a directory, and the Hub does not provide it",
    "me/adapters/third": "me/adapters/third has no adapter_model.safetensors",
    "me/base": "me/base has no adapter_model.safetensors",
}
READ = """
import json, sys
from pllava.loading import Checkpoint

for adapter in sys.argv[1:]:
    try:
        print(Checkpoint.read(None, adapter))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def test_errors_name_what_was_wrong_and_what_to_do(adapter, online, tmp_path):
    for number, base in enumerate(BASES):
        write(tmp_path / f"adapter-{number}", adapter, base_model_name_or_path=base)
    names = [*(f"adapter-{number}" for number in range(len(BASES))), *NAMES]
    found = [json.loads(line) for line in succeed("-c", READ, *names, **online).splitlines()]
    expected = [*(message.format(base) for base, message in BASES.items()), *NAMES.values()]
    assert [message in error for message, error in zip(expected, found, strict=True)] == [True] * len(names), found


def test_an_adapter_of_another_machine_works_with_a_model(adapter, checkpoint, clips, online, expected, tmp_path):
    write(tmp_path / "mine", adapter, base_model_name_or_path="/elsewhere/pllava-base")
    chat = ["pllava", "chat", clips[0], QUESTION, *SHORT, "--adapter", "mine"]
    alone = forked.run(*chat, **online)
    assert alone.returncode == 1
    assert alone.stderr.splitlines()[-1] == f"Error: {FOLDER.format('/elsewhere/pllava-base')}"
    assert succeed(*chat, "--model", checkpoint, **online).strip() == expected[0]
