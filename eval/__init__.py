"""Evaluation: benchmarks, judges, controls and sweeps, and what their figures are worth."""

from pathlib import Path

from ..extras import needs_extra

with needs_extra("eval"):
    from .answers import LocalModel
    from .benchmark import Benchmark, load_benchmark, load_benchmarks, load_prompts
    from .checkpoint import Checkpoint
    from .compare import compare
    from .endpoint import Endpoint
    from .judge import Judge, LocalChat
    from .processes import join_processes
    from .readers import Sample
    from .rescore import rescore, result_folders
    from .runner import Collected, collect, conclude, evaluate
    from .server import ChatServer
    from .variants import CONTROL_VARIANTS, PLAIN, Variant, parse_sweep

METRICS = str(Path(__file__).with_name("metrics"))  # modules for `evaluate.load`

__all__ = [
    "CONTROL_VARIANTS",
    "METRICS",
    "PLAIN",
    "Benchmark",
    "ChatServer",
    "Checkpoint",
    "Collected",
    "Endpoint",
    "Judge",
    "LocalChat",
    "LocalModel",
    "Sample",
    "Variant",
    "collect",
    "compare",
    "conclude",
    "evaluate",
    "join_processes",
    "load_benchmark",
    "load_benchmarks",
    "load_prompts",
    "parse_sweep",
    "rescore",
    "result_folders",
]
