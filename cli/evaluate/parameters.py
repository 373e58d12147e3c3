"""The options of `pllava eval`, apart from those that all commands share."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

benchmark_option = partial(typer.Option, rich_help_panel="Benchmarks")
judge_option = partial(typer.Option, rich_help_panel="Judge")
results_option = partial(typer.Option, rich_help_panel="Results")

ModelArgument = Annotated[str | None, typer.Argument(help="The same as --model.", metavar="MODEL", show_default=False)]

Benchmark = Annotated[
    str,
    benchmark_option(
        help="mvbench, vcgbench, msvd_qa, msrvtt_qa, activitynet_qa, tgif_qa (videoqa: these four), inter4k, nano, or "
        "a .yaml file; several are separated by commas.",
        metavar="NAME",
    ),
]
Data = Annotated[str, benchmark_option(help="A folder with their files, or a dataset on the Hub.", metavar="FOLDER")]
Limit = Annotated[int | None, benchmark_option(min=1, help="Samples of each task.", metavar="N", show_default="all")]
Controls = Annotated[
    bool,
    benchmark_option(
        "--controls", help="Ask again without the video, with one frame, with shuffled and with reversed frames."
    ),
]
Sweep = Annotated[
    str | None,
    benchmark_option(
        help="Ask again with other values of alpha=0,4,20,32 or pooling=average-16x8x8,slowfast,merge.",
        metavar="NAME=VALUES",
    ),
]
NumFrames = Annotated[
    int | None,
    benchmark_option(min=1, help="Frames that are sampled.", metavar="N", show_default="as many as in training"),
]
ChatTemplate = Annotated[
    str | None,
    benchmark_option(help="A template in chat_templates_pllava.py.", metavar="NAME", show_default="the benchmark's"),
]
Prompts = Annotated[
    Path | None,
    benchmark_option(help="A YAML file with other wording; see eval/benchmarks/README.md.", metavar="FILE"),
]
BatchSize = Annotated[
    int,
    benchmark_option(min=1, help="Questions answered together; fewer if memory does not suffice.", metavar="N"),
]
Workers = Annotated[int, benchmark_option(min=0, help="Processes that decode clips ahead.", metavar="N")]

Judge = Annotated[
    str | None,
    judge_option(help="The model that grades open answers: a local one, or one of --judge-endpoint.", metavar="NAME"),
]
JudgeEndpoint = Annotated[
    str | None,
    judge_option(
        help="An OpenAI-compatible server, with the key in OPENAI_API_KEY; openai is OpenAI's own.", metavar="URL"
    ),
]
JudgeTemperature = Annotated[float, judge_option(help="Sampling temperature.", metavar="NUMBER")]
JudgeRpm = Annotated[float | None, judge_option(help="Maximum number of requests per minute.", metavar="NUMBER")]
JudgePrice = Annotated[
    tuple[float, float] | None,
    judge_option(help="US dollars per million tokens of prompts, and of replies.", metavar="NUMBER NUMBER"),
]

Out = Annotated[
    Path,
    results_option(
        help="A folder that gets a folder for each benchmark. A run that was stopped continues there.",
        metavar="FOLDER",
    ),
]
RetryFailed = Annotated[
    bool, results_option("--retry-failed", help="Retry clips that could not be read and requests that failed.")
]
Rescore = Annotated[
    Path | None,
    results_option(help="Score and judge the answers in this folder again, without the model.", metavar="FOLDER"),
]
Compare = Annotated[
    tuple[Path, Path] | None,
    results_option(help="Print how the results in two folders differ.", metavar="FOLDER FOLDER"),
]
Push = Annotated[
    str | None,
    results_option(
        help="Put the results into the card of this model or adapter on the Hub, and the answers into the dataset "
        "USER/NAME-results.",
        metavar="USER/NAME",
    ),
]
Seed = Annotated[int, results_option(help="Seed for the confidence intervals.", metavar="N")]
