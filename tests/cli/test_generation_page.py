"""The section of docs/usage.md about faster answers is what its script writes from its results."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_section_is_that_of_the_results():
    spec = importlib.util.spec_from_file_location("generation_benchmark", ROOT / "benchmarks" / "generation.py")
    generation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generation)
    page = generation.PAGE.read_text(encoding="utf-8")
    written = page.partition(generation.BEGIN)[2].partition(generation.END)[0]
    results = json.loads(generation.RESULTS.read_text(encoding="utf-8"))
    assert written == "\n" + generation.section(results) + "\n"
