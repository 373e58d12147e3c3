"""
Remote code from the Hub, where only transformers, torch, torchvision and av are installed: loaded twice, in two
revisions, beside the package, and at a pinned revision after the repository was taken over.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import hub_client
import pytest
import torch
from bare_environment import BARE, run_bare
from local_hub import local_hub
from model_inputs import TOKENS
from peft import get_peft_model

import pllava

TASKS = ("video-text-to-text", "image-text-to-text", "any-to-any")
# A repository that was taken over: all its code leaves a mark when it is imported
PLANTED = """
import os

with open(os.environ["MARKER"], "a") as marker:
    marker.write(__name__.split(".")[-1] + "\\n")
"""
COMMON = f"""
import json
import os
import sys
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
    pipeline,
)

AUTO = (AutoProcessor, AutoVideoProcessor, AutoConfig, AutoModel, AutoModelForCausalLM)
AUTO += (AutoModelForImageTextToText, AutoModelForMultimodalLM)
TASKS = {TASKS}
MARKER = Path(os.environ["MARKER"])


def ask(pipe):
    content = [{{"type": "video", "path": os.environ["CLIP"]}}, {{"type": "text", "text": "What happens?"}}]
    return pipe(text=[{{"role": "user", "content": content}}], return_full_text=False)[0]["generated_text"]


def load_pipeline(task, model, **options):
    return pipeline(task, model, max_new_tokens={TOKENS}, device="cpu", **options)


def take_marks():
    marks = sorted(set(MARKER.read_text().split())) if MARKER.exists() else []
    MARKER.unlink(missing_ok=True)
    return marks
"""


@pytest.fixture(scope="module")
def expected(answer, clips):
    video = {"type": "video", "path": str(clips[0])}
    return answer([{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}])


@pytest.fixture(scope="module")
def hub(checkpoint, tmp_path_factory):
    """
    Serves the model `me/pllava`, whose commit `good` is harmless and whose newest one is malicious, and `me/adapter`,
    which was trained on the harmless one.
    """
    folder = tmp_path_factory.mktemp("hub")
    with local_hub(folder) as hub:
        model = folder / "me" / "pllava"
        shutil.copytree(checkpoint, model)
        hub.good = hub.find("models", "me/pllava").resolve("main")
        (model / "custom_generate").mkdir()
        (model / "custom_generate" / "generate.py").write_text("def generate(model, **kwargs):\n    return None\n")
        append(model, PLANTED)
        write_adapter(folder / "me" / "adapter", checkpoint, "me/pllava", hub.good)
        yield hub


def append(folder, code):
    for file in folder.rglob("*.py"):
        file.write_text(file.read_text() + code)


def write_adapter(folder, checkpoint, base, revision=None):
    model = pllava.load_model(checkpoint)
    model = get_peft_model(model, pllava.lora_config(r=8, lora_alpha=8))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    file = folder / "adapter_config.json"
    config = {**json.loads(file.read_text()), "base_model_name_or_path": base, "revision": revision}
    file.write_text(json.dumps(config))


@pytest.fixture
def online(hub, clips, tmp_path):
    """The environment of a process that uses the Hub, with caches of its own."""
    environment = hub_client.online(hub, tmp_path / "home")
    return {**environment, "MARKER": str(tmp_path / "marker"), "CLIP": str(clips[0])}


def result_of(run):
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


# --- the environment -------------------------------------------------------------------------------------------------

ENVIRONMENT = """
import importlib, json, sys

found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        found[name] = True
    except ModuleNotFoundError:
        found[name] = False
print(json.dumps(found))
"""


def test_the_bare_environment_has_what_it_should_and_nothing_else():
    there, absent = [*BARE, "numpy"], ["pllava", "pllava_cli", "peft", "accelerate", "trl", "datasets", "pytest"]
    found = result_of(run_bare(ENVIRONMENT, *there, *absent, cwd=Path(pllava.__file__).parent.parent))
    assert found == {**dict.fromkeys(there, True), **dict.fromkeys(absent, False)}


# --- several loads in a process --------------------------------------------------------------------------------------

TWICE = """
import pickle

load = {"pretrained_model_name_or_path": "me/pllava", "revision": sys.argv[1], "trust_remote_code": True}
first, second = ([type(auto.from_pretrained(**load)) for auto in AUTO] for _ in range(2))
assert first == second and all(each.__module__.startswith("transformers_modules.") for each in first), first
processor = AutoProcessor.from_pretrained(**load)
assert type(processor.video_processor) is first[1]
assert type(pickle.loads(pickle.dumps(processor))) is first[0]
answers = []
for task in 2 * TASKS:
    pipe = load_pipeline(task, "me/pllava", revision=sys.argv[1], trust_remote_code=True)
    assert (type(pipe.model), type(pipe.processor)) == (first[-1], first[0]) and type(pipe.model.config) is first[2]
    answers.append(ask(pipe))
print(json.dumps(answers))
"""


def test_remote_code_loads_twice_with_the_same_classes(hub, online, expected):
    assert result_of(run_bare(COMMON + TWICE, hub.good, **online)) == [expected] * 6


TWO_REVISIONS = """
load = {"trust_remote_code": True}
places = [("me/two", {"revision": revision}) for revision in ("first", "main")] + [(name, {}) for name in sys.argv[1:]]
loaded = []
for name, revision in places:
    parts = [auto.from_pretrained(name, **revision, **load) for auto in AUTO]
    pipe = load_pipeline("video-text-to-text", name, **revision, **load)
    loaded.append((pipe, [*parts, *parts[0].get_attributes(), pipe, pipe.model, pipe.processor.video_processor]))
found = []
for pipe, parts in loaded:  # after all of them were loaded
    modules = {type(part).__module__ for part in parts} - {"builtins"}
    found.append([sorted({sys.modules[module].REVISION for module in modules}), ask(pipe)])
print(json.dumps(found))
"""


def test_each_revision_runs_its_own_code(checkpoint, hub, online, expected, tmp_path):
    """Two revisions of a repository, and two local folders of the same name."""
    folders = [hub.folder / "me" / "two", hub.folder / "me" / "two", tmp_path / "a" / "same", tmp_path / "b" / "same"]
    for number, folder in enumerate(folders):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(checkpoint, folder)
        append(folder, f"\nREVISION = {number}\n")
        if number == 0:
            repository = hub.find("models", "me/two")
            repository.refs["refs/tags/first"] = repository.resolve("main")
            repository.save()
    found = result_of(run_bare(COMMON + TWO_REVISIONS, *folders[2:], **online))
    assert found == [[[number], expected] for number in range(4)]


# --- beside the package ----------------------------------------------------------------------------------------------

BESIDE = """
load = {"revision": sys.argv[1], "trust_remote_code": True}


def load_all(origin, **options):
    parts = [auto.from_pretrained("me/pllava", **options) for auto in AUTO]
    assert all(type(part).__module__.startswith(origin) for part in parts), [type(part) for part in parts]
    return parts


def ask_all(**options):
    pipes = [load_pipeline(task, "me/pllava", **options) for task in TASKS]
    return [ask(pipe) for pipe in pipes], type(pipes[0]).__module__.split(".")[0]


answers, parts = [], []
if sys.argv[2] == "remote code first":
    parts.append(load_all("transformers_modules.", **load))
    answers.append(ask_all(**load))
import pllava

parts.append(load_all("pllava.", revision=sys.argv[1]))
answers.append(ask_all(revision=sys.argv[1], pipeline_class=pllava.VideoTextToTextPipeline))
parts.append(load_all("pllava.", **load))  # transformers prefers code that was registered
answers.append(ask_all(**load))
for model in (parts[0][5], parts[-1][5]):
    for processor in (parts[0][0], parts[-1][0]):
        answers.append(([ask(load_pipeline(task, model, processor=processor)) for task in TASKS], "mixed"))
print(json.dumps([answers, take_marks()]))
"""


@pytest.mark.parametrize("order", ["remote code first", "package first"])
def test_remote_code_beside_the_package(hub, online, expected, order, tmp_path):
    command = [sys.executable, "-c", COMMON + BESIDE, hub.good, order]
    run = subprocess.run(command, cwd=tmp_path, env={**os.environ, **online}, capture_output=True, text=True)
    answers, marks = result_of(run)
    assert {text for texts, _ in answers for text in texts} == {expected} and not marks
    # The pipeline's class is the checkpoint's, with `trust_remote_code`, or the package's, with `pipeline_class`
    remote = ["transformers_modules"]
    assert [pipe for _, pipe in answers] == [
        *(remote if order == "remote code first" else []), "pllava", *remote, *4 * ["mixed"]
    ]  # fmt: skip


# --- a pinned revision -----------------------------------------------------------------------------------------------

PINNED = """
def load_everything(**revision):
    found = {}
    for auto in AUTO:
        auto.from_pretrained("me/pllava", trust_remote_code=True, **revision)
        found[auto.__name__] = take_marks()
    for task in TASKS:
        pipe = load_pipeline(task, "me/pllava", trust_remote_code=True, **revision)
        found[task] = [*take_marks(), ask(pipe) if revision else ""]
    return found


print(json.dumps([load_everything(revision=sys.argv[1]), load_everything()]))
"""


def test_a_pinned_revision_runs_only_its_own_code(hub, online, expected):
    pinned, unpinned = result_of(run_bare(COMMON + PINNED, hub.good, **online))
    assert pinned == {name: [expected] if name in TASKS else [] for name in unpinned}
    # Else this shows nothing: all code of the newest revision leaves its mark
    code = {Path(name).stem for name in os.listdir(Path(pllava.__file__).parent) if name.endswith("_pllava.py")}
    assert {mark for marks in unpinned.values() for mark in marks} - {""} == {*code, "generate"}


ADAPTER = """
from peft import AutoPeftModelForCausalLM

base, adapter = sys.argv[1:]
found = []
for options in ({}, {"revision": adapter}):
    AutoPeftModelForCausalLM.from_pretrained("me/adapter", trust_remote_code=True, **options)
    found.append(take_marks())
pinned = {"revision": base, "adapter_kwargs": {"revision": adapter}, "trust_remote_code": True}
model = AutoModelForImageTextToText.from_pretrained("me/adapter", **pinned)
processor = AutoProcessor.from_pretrained("me/pllava", revision=base, trust_remote_code=True)
answers = [ask(load_pipeline(task, model, processor=processor)) for task in TASKS[1:]]
found.append(take_marks())
AutoModelForImageTextToText.from_pretrained("me/adapter", trust_remote_code=True)
found.append(take_marks())
print(json.dumps([found, answers]))
"""


def test_an_adapter_gets_the_revision_of_its_base_that_its_config_names(checkpoint, hub, online, clips):
    adapter = hub.find("models", "me/adapter").resolve("main")
    found, answers = result_of(run_bare(COMMON + ADAPTER, hub.good, adapter, packages=("peft",), **online))
    *pinned, unpinned = found
    assert pinned == [[], [], []] and "modeling_pllava" in unpinned
    assert len(set(answers)) == 1


def test_the_package_never_runs_a_checkpoints_code(hub, online, expected, tmp_path):
    chat = ["pllava", "chat", online["CLIP"], "What happens?", "--max-new-tokens", TOKENS, "--model", "me/pllava"]
    for revision in (["--revision", hub.good], []):
        run = forked.run(*chat, *revision, cwd=tmp_path, **online)
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.strip() == expected.strip()
    load = f"""
import json, pllava
for options in ({{"revision": {hub.good!r}}}, {{}}):
    model = pllava.load_model("me/pllava", **options)
print(json.dumps(model.config._commit_hash))
"""
    newest = hub.find("models", "me/pllava").resolve("main")
    assert result_of(forked.run("-c", load, cwd=tmp_path, **online)) == newest != hub.good
    assert not Path(online["MARKER"]).exists()
