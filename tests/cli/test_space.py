"""A Space: its metadata, its requirements, and its app, which runs where this project is not installed."""

import configparser
import json
from pathlib import Path

import forked
import gradio
import pytest
import torch
from bare_environment import run_bare
from hub_client import online
from huggingface_hub import SpaceCard
from local_hub import local_hub
from packaging.requirements import Requirement
from packaging.version import Version
from peft import get_peft_model
from ports import free_port
from transformers import AutoModelForImageTextToText, AutoProcessor

import pllava
from pllava import NANO, lora_config
from pllava.nano.world.rendering import read_questions, render

ROOT = Path(pllava.__file__).parent
QUESTION = "Describe the video."
# Pushes a model or, after its base model, an adapter; writes and pushes its Space; breaks what is on the Hub
PUSH = """
import json, sys
from pathlib import Path
from huggingface_hub import SpaceCard
from pllava.hub_cards.space import write_space
from pllava.hub_cards.uploading import upload

repositories, space, broken = json.loads(sys.argv[1]), Path(sys.argv[2]), Path("broken")
broken.mkdir()
for name in ("config.json", "adapter_config.json"):
    (broken / name).write_text("{}")
*base, last = repositories
commits = {name: upload(Path(repositories[name]), name).oid for name in base}
if base:
    config = Path(repositories[last], "adapter_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"revision": commits[base[0]]}))
    upload(broken, base[0])
commits[last] = upload(Path(repositories[last]), last).oid
write_space(space, last, commits[last], *base)
SpaceCard.load(space / "README.md").validate()
upload(space, last, "space")
upload(broken, last)
print(json.dumps(commits))
"""
# Starts the Space's app in the same environment, and asks it about each file
VISIT = """
import json, os, socket, subprocess, sys, time
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

address = ("127.0.0.1", int(os.environ["GRADIO_SERVER_PORT"]))
app = subprocess.Popen([sys.executable, "-S", "-s", "app.py"], stdout=sys.stderr)
try:
    while socket.socket().connect_ex(address) != 0:
        assert app.poll() is None, "the app has ended"
        time.sleep(0.2)
    client = Client("http://{}:{}".format(*address), verbose=False)
    for file in sys.argv[2:]:
        try:
            answer = client.predict(question=sys.argv[1], files=[handle_file(file)], api_name="/chat")
        except AppError as error:
            answer = f"Error: {error}"
        print(json.dumps(answer))
finally:
    app.kill()
"""


@pytest.fixture
def clip(tmp_path):
    render(tmp_path / "world", 1, seed=2)
    return read_questions(tmp_path / "world")[0]["video"]


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter of nano with random weights."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(NANO)
    model.name_or_path = model.config.name_or_path = "me/nano"
    model = get_peft_model(model, lora_config(r=4))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def push(address, space, repositories, folder):
    """Write a Space into the folder `space`; return the commits that it should load, since later ones are broken."""
    space.mkdir()
    named = json.dumps({name: str(path) for name, path in repositories.items()})
    result = forked.run("-c", PUSH, named, space, cwd=folder, **online(address, folder / "pushing"))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def visit(address, space, *files, packages, folder):
    """Return the answers of the Space's app to the question about each file."""
    environment = {"GRADIO_SERVER_PORT": free_port(), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    environment |= online(address, folder / "visiting")
    result = run_bare(VISIT, QUESTION, *files, packages=packages, cwd=space, **environment)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def ask(model, clip):
    pipe = pllava.VideoTextToTextPipeline(model=model, processor=AutoProcessor.from_pretrained(NANO))
    return pipe(clip, text=QUESTION)[0]["generated_text"].strip()


def distributions(space):
    return tuple(Requirement(line).name for line in (space / "requirements.txt").read_text().splitlines())


def test_space_of_a_model_answers_where_the_project_is_not_installed(clip, tmp_path):
    space, broken = tmp_path / "space", tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with local_hub(tmp_path / "hub") as address:
        commits = push(address, space, {"me/nano": NANO}, tmp_path)
        packages = ("gradio", *set(distributions(space)) - {"spaces"})
        error, answer = visit(address, space, broken, clip, packages=packages, folder=tmp_path)
    assert answer == ask(pllava.load_model(NANO), clip)
    assert error.startswith("Error: Cannot decode broken.mp4: ") and "\n" not in error

    card = SpaceCard.load(space / "README.md")
    assert card.data.models == ["me/nano"] and "](https://huggingface.co/me/nano)" in card.text
    (preloaded,) = card.data.preload_from_hub
    repository, files, commit = preloaded.split(" ")
    assert card.data.license == "apache-2.0"
    assert (repository, commit) == ("me/nano", commits["me/nano"])
    assert {"config.json", "model.safetensors", "modeling_pllava.py"} <= set(files.split(","))
    assert card.data.sdk == "gradio" and len(card.data.short_description) <= 60
    asked, installed = Version(card.data.sdk_version), Version(gradio.__version__)
    assert asked <= installed and asked.major == installed.major

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = [Requirement(line) for line in setup["options"]["install_requires"].split()]
    specifiers = {requirement.name: requirement.specifier for requirement in declared}
    required = [Requirement(line) for line in (space / "requirements.txt").read_text().splitlines()]
    assert {each.name for each in required} == {"transformers", "torch", "torchvision", "av", "accelerate", "spaces"}
    assert all(each.specifier == specifiers[each.name] for each in required if each.name != "spaces")


def test_space_of_an_adapter_answers_with_the_adapter(adapter, clip, tmp_path):
    space = tmp_path / "space"
    with local_hub(tmp_path / "hub") as address:
        commits = push(address, space, {"me/nano": NANO, "me/adapter": adapter}, tmp_path)
        packages = ("gradio", *set(distributions(space)) - {"spaces"})
        (answer,) = visit(address, space, clip, packages=packages, folder=tmp_path)
    with_adapter = pllava.load_model(NANO, adapter=adapter).get_base_model()
    assert answer == ask(with_adapter, clip) != ask(pllava.load_model(NANO), clip)
    card = SpaceCard.load(space / "README.md")
    assert card.data.models == ["me/adapter", "me/nano"]
    assert {entry.split()[0]: entry.split()[-1] for entry in card.data.preload_from_hub} == commits
    assert "peft" in distributions(space)


def test_space_of_a_model_that_is_not_on_the_hub_is_one_clear_error(tmp_path):
    (tmp_path / "hub").mkdir()
    code = "import pathlib, pllava.hub_cards.space as space; space.write_space(pathlib.Path(), 'me/no', None)"
    with local_hub(tmp_path / "hub") as address:
        result = forked.run("-c", code, cwd=tmp_path, **online(address, tmp_path / "home"))
    assert result.stderr.splitlines()[-1].startswith("OSError: me/no: there is no such repository")
    assert not list(tmp_path.glob("*.*"))
