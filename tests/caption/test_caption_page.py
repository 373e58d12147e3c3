"""The figures of docs/captioning.md are those that were measured."""

import importlib.util
from pathlib import Path

from pllava.files import read_object

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "captioning.py"


def test_page_has_the_figures_of_the_results():
    spec = importlib.util.spec_from_file_location("benchmark_of_captioning", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    measured, real_size = read_object(benchmark.RESULTS), read_object(benchmark.REAL_SIZE)
    page = benchmark.PAGE.read_text(encoding="utf-8")
    written = page.split(benchmark.BEGIN)[1].split(benchmark.END)[0].strip()
    assert written == f"{benchmark.section(measured)}\n\n{benchmark.computed(real_size)}"
    clips = measured["clips"]
    assert {(way["lines"], way["same"]) for way in measured["ways"].values()} == {(clips, clips)}
