"""Imports between rooms point downwards, files and folders stay small, and all files are installed."""

import configparser
import importlib.util
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

SPEC = importlib.util.spec_from_file_location("rooms", Path(__file__).parents[2] / "docs" / "rooms.py")
rooms = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(rooms)

MAX_LINES = 300
MAX_MODEL_LINES = 280
MAX_FILES = 10  # of a folder, without its sub-folders


def test_imports_point_downwards_and_no_files_import_each_other():
    assert rooms.check_rooms(rooms.measure_imports()) == []


def test_all_kinds_of_imports_are_measured():
    imports = rooms.measure_imports()
    assert "loading.py" in imports["__init__.py"]  # from .loading import load_model
    assert "__init__.py" in imports["eval/lmms_eval_plugin/model.py"]  # from pllava import load_model
    assert "cli" in {rooms.room_of(file) for file in imports["nano/__main__.py"]}  # from pllava_cli.program import ...
    assert "convert" in {rooms.room_of(file) for file in imports["cli/convert.py"]}  # inside a function


@pytest.mark.parametrize(
    "imports",
    [
        {"files.py": {"cli/chat.py"}, "cli/chat.py": set()},
        {"data/rows.py": {"eval/store.py"}, "eval/store.py": set()},
        {"eval/store.py": {"eval/report/plots.py"}, "eval/report/plots.py": set()},
        {"data/a.py": {"data/b.py"}, "data/b.py": {"data/a.py"}},
        {"data/a.py": {"data/b.py"}, "data/b.py": {"data/c.py"}, "data/c.py": {"data/a.py"}},
        {"attic/old.py": set()},
    ],
    ids=["upwards", "between rooms of one line", "upwards in eval", "two files", "three files", "no room"],
)
def test_wrong_imports_are_found(imports):
    assert len(rooms.check_rooms(imports)) == 1


def test_files_are_short():
    lines = {
        name: len((rooms.ROOT / name).read_text(encoding="utf-8").splitlines())
        for name in rooms.product_files()
        if name.endswith(".py")
    }
    assert lines["modeling_pllava.py"] <= MAX_MODEL_LINES
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_folders_have_few_files():
    files = Counter(Path(name).parent.as_posix() for name in rooms.product_files())
    del files["."]  # the shape of a model repository on the Hub: all that a checkpoint carries lies at the root
    assert {folder: count for folder, count in files.items() if count > MAX_FILES} == {}


def test_setup_cfg_installs_all_files():
    setup = configparser.ConfigParser()
    setup.read(rooms.ROOT / "setup.cfg")
    packages = setup["options"]["packages"].split()
    patterns = setup["options.package_data"]["pllava"].split()
    checkpoint = [name for name in rooms.repository_files() if name.startswith("nano/checkpoint/")]
    for name in [*checkpoint, *rooms.product_files()]:
        file = PurePosixPath(name)
        if file.suffix == ".py" and rooms.module_name(str(file.parent / "__init__.py")) in packages:
            continue
        if len(file.parts) > 1:  # those at the root are for the repository only: LICENSE, Makefile, ...
            assert any(file.match(pattern) for pattern in patterns), f"setup.cfg does not install {name}"
