"""`pllava eval`: a model's figures on benchmarks, and two models' figures beside each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import load_checkpoint, said_without_traceback, takes_model


@takes_model(load_checkpoint)
def evaluate(
    load: Callable[..., Any],
    model: Annotated[
        str | None,
        typer.Argument(
            help="Directory or Hub id of a PLLaVA, or its name at the --endpoint; 'nano' ships with the package.",
            show_default="nano, or the base of --adapter",
        ),
    ] = None,
    benchmark: Annotated[
        str,
        typer.Option(
            help="One or several, with commas: mvbench, vcgbench, msvd_qa, msrvtt_qa, activitynet_qa, tgif_qa "
            "(videoqa: these four), inter4k, nano, or the .yaml file of one's own."
        ),
    ] = "nano",
    data: Annotated[
        str | None, typer.Option(help="A folder with the benchmarks' files, or a dataset on the Hub; '.' by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Gets a folder for each benchmark; what is there is not done again.")] = (
        Path("results")
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each task; by default all.")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Ask without video, of one frame, of shuffled and reversed ones, too.")
    ] = False,
    sweep: Annotated[
        str | None, typer.Option(help="alpha=0,4,20,32 or pooling_shape=16x12x12,16x8x8: each in place of the own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode clips ahead.")] = 2,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip; the model's own number.")] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="A name of chat_templates_pllava.py in place of the benchmarks' own.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="YAML with other wording, as eval/prompts.yaml.")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="An OpenAI-compatible server that has MODEL, http://localhost:8000/v1; several with commas."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time, to each server.")] = 8,
    judge: Annotated[
        str | None, typer.Option(help="What judges open answers: a model of --judge-endpoint, or a local one.")
    ] = None,
    judge_endpoint: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server, its key in OPENAI_API_KEY; 'openai' is OpenAI's own."),
    ] = None,
    judge_temperature: Annotated[float, typer.Option(help="Of the judge's sampling.")] = 0.0,
    judge_rpm: Annotated[float | None, typer.Option(help="Requests a minute that the judge is sent at most.")] = None,
    judge_price: Annotated[
        tuple[float, float] | None, typer.Option(help="US dollars for a million tokens: of prompts, and of replies.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask the judge again where it failed.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two folders of results: prints in what they differ.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the intervals' resampling.")] = 0,
) -> None:
    """Evaluate a model: predictions, metrics with intervals and coverage, and a report, in a folder a benchmark."""
    with said_without_traceback("eval"):
        import torch
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        from pllava import eval as evaluation
        from pllava.eval.compare import format_differences
        from pllava.eval.report import format_sweep, read_sweeps
        from pllava.eval.summary import format_summary

        if compare:
            for name, comparison in evaluation.compare(*compare).items():
                typer.echo(f"{name}\n{format_differences(comparison)}\n")
            return
        wording = evaluation.load_prompts(prompts)
        benchmarks = evaluation.load_benchmarks(benchmark, wording)
        variants = [] if sweep and not controls else [evaluation.PLAIN]
        variants += evaluation.CONTROL_VARIANTS if controls else []
        variants += evaluation.parse_sweep(sweep) if sweep else []
        # accelerate joins processes on CPUs only where it is told that it is on one
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
        place = {"rank": state.process_index, "world_size": state.num_processes}
        # Before a model is loaded, so that what is wrong with the data is said at once
        samples = [each.samples(data or ".", limit) for each in benchmarks]
        judging = None
        if not judge and (judge_endpoint or retry_failed):
            raise ValueError("Name the model that judges: --judge")
        if judge and state.is_main_process:
            chat = (
                evaluation.ChatServer(
                    judge, None if judge_endpoint == "openai" else judge_endpoint, concurrency, judge_rpm
                )
                if judge_endpoint
                else evaluation.LocalChat(judge, state.device)
            )
            out.mkdir(parents=True, exist_ok=True)
            judging = evaluation.Judge(
                chat, wording["judge"], out / "judge_cache.jsonl", judge_temperature, judge_price, retry_failed
            )
        if endpoint:
            if model is None:
                raise ValueError(f"Name the model that {endpoint} is to be asked for")
            if chat_template or load.keywords["adapter"]:
                raise ValueError("--adapter and --chat-template are for a local model; a server has its own")
            answerer = evaluation.Endpoint(
                evaluation.ChatServer(model, endpoint, concurrency),
                **({"num_frames": num_frames} if num_frames else {}),
                **place,
            )
        else:
            loaded, processor = load()
            if num_frames:
                processor.video_processor.num_frames = num_frames
            answerer = evaluation.LocalModel(
                loaded, processor, load.keywords["adapter"], chat_template, batch_size, workers, **place
            )

        def conclude(collected: evaluation.Collected) -> None:
            for found in evaluation.conclude(collected, judging, seed).values():
                typer.echo(format_summary(found))
            for swept in read_sweeps(collected.folder).items() if sweep else ():
                typer.echo(f"\n{format_sweep(*swept)}")
            typer.echo(f"See {collected.folder}")

        later = []
        for each, asked in zip(benchmarks, samples, strict=True):
            collected = evaluation.collect(each, answerer, asked, out, variants, limit)
            if state.num_processes > 1 and judge:
                later.append(collected)  # other processes must not wait for a judge, which may take hours
            elif state.is_main_process:
                conclude(collected)
        for collected in later if state.is_main_process else []:
            conclude(collected)
