"""The wheel and the source distribution, as they would be uploaded: complete, and usable outside the repository."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from repository import ROOT, copy_repository

pytestmark = pytest.mark.slow  # a minute; the commands start a dozen processes
SOURCE_ONLY = {"benchmarks", "docs", "examples", "tests"}
# Folders and files of the package's rooms that wheels are without: the sources of gallery/site, the study's results
NOT_IN_WHEEL = ("gallery/web/", "nano/study/plots/", "nano/study/report.md", "nano/study/verdicts.json")

# Uses what is not code in the package, and what is found by a path in it
FILES = """
import shutil
import sys
from pathlib import Path

import evaluate
import pllava
from pllava.data.sources import find_file
from pllava.eval import METRICS, load_benchmarks, load_prompts
from pllava.hub_cards.cards.model_card import write_model_card
from transformers import AutoProcessor

package = Path(pllava.__file__).parent
assert package.is_relative_to(sys.prefix), package
assert find_file("data/videochat2_it.yaml").is_relative_to(package)
assert AutoProcessor.from_pretrained(pllava.NANO).chat_template
load_benchmarks("nano,mvbench,videoqa,vcgbench,inter4k", load_prompts())
for folder in Path(METRICS).iterdir():
    assert evaluate.load(str(folder)).description
copy = Path(shutil.copytree(pllava.NANO, "copy"))
(copy / "README.md").unlink()
write_model_card(copy, "path/to/nano")
assert (copy / "README.md").read_text() == Path(pllava.NANO, "README.md").read_text()
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The files that `python -m build` makes from a copy of the repository: the wheel from the source distribution."""
    source, out = tmp_path_factory.mktemp("source") / "pllava", tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", out], copy_repository(source))
    return out


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """A new environment with the wheel; all other packages are those of this one, in which nothing else is seen."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    (wheel,) = distributions.glob("*.whl")
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel], folder)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(packages, "others.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    return folder


@pytest.fixture(scope="module")
def folder(installed, tmp_path_factory):
    """An empty folder outside the repository."""
    return tmp_path_factory.mktemp("work")


def run(command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def package_files():
    """The files of the repository that a user of the package needs, by their paths in the wheel."""
    folders = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists()} - SOURCE_ONLY
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    names = {str(file.relative_to(ROOT)) for file in files if file.is_file() and "__pycache__" not in file.parts}
    names = {name for name in names if not name.startswith(NOT_IN_WHEEL)}
    return {place_in_wheel(name) for name in names | {"gallery/site/index.html"}}


def place_in_wheel(name):
    for folder, package in {"cli/": "pllava_cli/", "eval/lmms_eval_plugin/": "pllava_lmms_eval/"}.items():
        if name.startswith(folder):
            return name.replace(folder, package, 1)
    return f"pllava/{name}"


def test_the_wheel_has_all_files_of_the_package(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        assert len(package_files()) > 100 and not sorted(package_files() - names)
        assert not sorted(name for name in names if name.split("/")[1] in SOURCE_ONLY)
        assert not sorted(name for name in names if any(place in name for place in NOT_IN_WHEEL))
        for file in ROOT.glob("*_pllava.py"):  # links in the repository
            assert content.read(f"pllava/nano/checkpoint/{file.name}") == file.read_bytes()


def test_the_metadata_are_valid(distributions):
    files = sorted(distributions.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    run([sys.executable, "-m", "twine", "check", "--strict", *files], distributions)


def test_the_files_of_the_package_are_found(installed, folder):
    run([installed / "bin" / "python", "-c", FILES], folder)


def test_the_commands_work(installed, folder):
    program = installed / "bin" / "pllava"
    demo = run([installed / "bin" / "python", "-m", "pllava.nano", "demo"], folder)
    assert "answers are exactly right" in demo and (folder / "demo.mp4").exists()
    chat = run([program, "chat", "demo.mp4", "How many times does the blue ring bounce?"], folder)
    assert chat.strip() == "three"
    for name, seed in (("held-out", 1), ("world", 2), ("validation", 3)):
        run([installed / "bin" / "python", "-m", "pllava.nano", "render", name, "--clips", 2, "--seed", seed], folder)
    evaluated = run([program, "eval", "nano", "--data", "held-out"], folder)
    assert "See results/nano" in evaluated and (folder / "results" / "nano" / "report.md").exists()
    options = ["--max_steps", "1", "--dataloader_num_workers", "0"]
    run([program, "train", "--config", "train/recipes/nano.yaml", *options], folder)
    assert "# my-nano" in (folder / "my-nano" / "README.md").read_text()
