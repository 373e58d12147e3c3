"""
The rooms of the repository: its folders, and the files at its root, from those that import the others to those that
import none. `draw_rooms.py` draws them; tests/files/test_layout.py checks the order.
"""

import ast
import subprocess
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUDY_RESULTS = ("nano/study/report.md", "nano/study/verdicts.json", "nano/study/plots/")
NOT_PRODUCT = ("tests/", "benchmarks/", "docs/", "examples/", "nano/checkpoint/", *STUDY_RESULTS, "gallery/web/")
PACKAGES = {"pllava.cli": "pllava_cli", "pllava.eval.lmms_eval_plugin": "pllava_lmms_eval"}  # as in setup.cfg

# The rooms and the patterns of their files, from top to bottom. Imports point downwards only; rooms of the same line
# do not import each other.
ROOMS = [
    {"nano": "nano/* nano/study/* nano/study/report/* nano/training/*"},
    {"cli": "cli/* eval/__main__.py caption/__main__.py"},
    {"demo": "demo/*", "gallery": "gallery/*", "serving": "serving/*"},
    {"nano's world": "nano/world/*"},
    {"train": "train/*", "caption": "caption/*"},
    {"data": "data/*", "eval": "eval/*"},
    {"convert": "convert/*"},
    {"hub_cards": "hub_cards/*"},
    {"result_files": "result_files/*"},
    {"media": "media/*"},
    {"loading": "loading.py __init__.py"},
    {"adapters": "adapters.py model_pooling.py", "generation": "generation.py conversation_cache.py"},
    {"origins": "origins.py"},
    {"model files": "*_pllava.py"},
    {"checkpoint_files": "checkpoint_files.py"},
    {"workers": "workers.py distributed.py"},
    {"files": "files.py"},
    {"extras": "extras.py environment.py"},
]
ROOMS_OF_EVAL = [
    {"eval: reproduction": "eval/reproduce/*"},
    {"eval: runs": "eval/*"},
    {"eval: report": "eval/report/*"},
    {"eval: scoring": "eval/scoring/* eval/metrics/*"},
    {"eval: store": "eval/store.py"},
    {"eval: models": "eval/models/*"},
    {"eval: controls and sweeps": "eval/controls_and_sweeps.py"},
    {"eval: benchmarks": "eval/benchmarks/*"},
]


def product_files() -> list[str]:
    """
    Return the files of the package, relative to the root, without nano's checkpoint, its study's results, and the
    page's TypeScript.
    """
    return [name for name in repository_files() if not name.startswith((".", *NOT_PRODUCT))]


def repository_files() -> list[str]:
    """Return all files, relative to the root: those that git tracks or, in an unpacked archive, all."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return sorted(name for name in listed.splitlines() if (ROOT / name).is_file())
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    return sorted(name for name in files if "__pycache__" not in name and ".egg-info" not in name)


def measure_imports() -> dict[str, set[str]]:
    """Return, for each Python file of the package, the files of the package that it imports anywhere in its code."""
    files = {module_name(file): file for file in product_files() if file.endswith(".py")}
    imports = {}
    for module, file in files.items():
        package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        names = []
        for node in ast.walk(ast.parse((ROOT / file).read_bytes(), file)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                source = resolve_name("." * node.level + (node.module or ""), package)
                names += [f"{source}.{alias.name}" for alias in node.names]
        # What follows the last dot is a module, or something that the module before it defines
        found = {files.get(name) or files.get(name.rpartition(".")[0]) for name in names}
        imports[file] = found - {file, None}
    return imports


def module_name(file: str) -> str:
    """Return the name under which setup.cfg installs a file."""
    name = ".".join(Path("pllava", file).with_suffix("").parts).removesuffix(".__init__")
    for folder, package in PACKAGES.items():
        name = name.replace(folder, package) if name == folder or name.startswith(f"{folder}.") else name
    return name


def check_rooms(imports: dict[str, set[str]]) -> list[str]:
    """List the files without a room, the imports that do not point downwards, and the files that import each other."""
    errors = [f"{file} belongs to no room of docs/rooms.py" for file in imports if not room_of(file)]
    for rooms in (ROOMS, ROOMS_OF_EVAL):
        rows = {room: row for row, line in enumerate(rooms) for room in line}
        for file, targets in imports.items():
            for target in sorted(targets):
                upper, lower = room_of(file, rooms), room_of(target, rooms)
                if upper and lower and upper != lower and rows[upper] >= rows[lower]:
                    errors.append(f"{file} imports {target}, but {upper} is not above {lower}")
    return errors + check_cycles(imports)


def room_of(file: str, rooms: list[dict[str, str]] = ROOMS) -> str | None:
    """Return the room with the longest pattern that a file matches."""
    patterns = {pattern: room for line in rooms for room, listed in line.items() for pattern in listed.split()}
    matching = [pattern for pattern in patterns if fnmatch(file, pattern)]
    return patterns[max(matching, key=len)] if matching else None


def check_cycles(imports: dict[str, set[str]]) -> list[str]:
    """List the pairs of files that import each other or, if there is none, one longer cycle."""
    pairs = [(file, target) for file, targets in imports.items() for target in targets if file < target]
    if mutual := [f"{file} and {target} import each other" for file, target in pairs if file in imports[target]]:
        return mutual
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return ["These files import each other in a cycle: " + ", ".join(error.args[1])]
    return []
