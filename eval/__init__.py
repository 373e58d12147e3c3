"""Evaluation: benchmarks, models, controls and sweeps, judges, and metrics with confidence intervals."""

from pathlib import Path

from ..extras import needs_extra
from ..loading import Checkpoint
from ..result_files.folders import result_folders

with needs_extra("eval"):
    from ..distributed import join_processes
    from .benchmarks.benchmark import Benchmark, load_benchmark, load_benchmarks, load_prompts
    from .benchmarks.readers import read_samples
    from .benchmarks.samples import Sample
    from .controls_and_sweeps import CONTROL_VARIANTS, PLAIN, Variant, parse_sweep
    from .models.endpoint import Endpoint
    from .models.local_chat_model import LocalChat
    from .models.local_model import LocalModel
    from .models.openai_client import ChatServer
    from .report.compare import compare
    from .rescore import rescore
    from .run import Collected, collect, conclude, evaluate
    from .scoring.judge import Judge
    from .suite import evaluate_suite, rescore_suite

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
    "evaluate_suite",
    "join_processes",
    "load_benchmark",
    "load_benchmarks",
    "load_prompts",
    "parse_sweep",
    "read_samples",
    "rescore",
    "rescore_suite",
    "result_folders",
]
