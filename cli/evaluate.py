"""`pllava eval`: a model's figures on benchmarks, and two models' figures beside each other."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import asked_quantization, load_checkpoint, named_model, said_without_traceback, takes_model

if TYPE_CHECKING:
    from pllava.eval import LocalModel

# Options that are for a judge, for one behind a server, for a model that is loaded here, and for scoring without one
JUDGE = {"judge_endpoint", "judge_temperature", "judge_rpm", "judge_price"}
JUDGE_AT_SERVER = {"judge_temperature", "judge_rpm"}
LOCAL = {"batch_size", "workers", "chat_template", "sweep"}  # beside those that load it
RESCORE = {"benchmark", "prompts", "concurrency", "judge", *JUDGE, "retry_failed", "rescore", "seed"}


@takes_model(load_checkpoint)
def evaluate(
    load: Callable[..., Any],
    context: typer.Context,
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
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions answered together; fewer where there is not enough memory for them.")
    ] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode clips ahead.")] = 2,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip; the model's own number.")] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="A name of chat_templates_pllava.py in place of the benchmarks' own.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="YAML with other wording: see eval/benchmarks/.")] = None,
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
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed: clips, a server's and a judge's replies.")
    ] = False,
    rescore: Annotated[
        Path | None,
        typer.Option(help="A folder of results: scores and judges the answers in it again, without the model."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two folders of results: prints in what they differ.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the intervals' resampling.")] = 0,
) -> None:
    """Evaluate a model: predictions, metrics with intervals and coverage, and a report, in a folder a benchmark."""
    with said_without_traceback("eval"):
        from pllava import eval as evaluation
        from pllava.eval.report.compare import format_differences
        from pllava.eval.report.formatting import format_summary
        from pllava.eval.report.variant_results import format_sweep, read_sweeps
        from pllava.eval.run import hold

        named = _named(context)
        if compare:
            _refuse(named, named.keys() - {"compare"}, "--compare takes the figures as they are")
            for name, comparison in evaluation.compare(*compare).items():
                typer.echo(f"{name}\n{format_differences(comparison)}\n")
            return
        if rescore:
            _refuse(named, named.keys() - RESCORE, "--rescore takes the answers as they are")
        if not judge:
            _refuse(named, JUDGE, "There is no --judge")
        if not judge_endpoint:
            _refuse(named, JUDGE_AT_SERVER, "A judge without --judge-endpoint is greedy, and no server")
        if not endpoint and not judge_endpoint:
            _refuse(named, {"concurrency"}, "There is neither --endpoint nor --judge-endpoint")
        if endpoint:
            of_local = LOCAL | load.keywords.keys() - {"model"}
            _refuse(named, of_local, "What is set for a local model is not for an --endpoint")
            if model is None:
                raise ValueError(f"Name the model that {endpoint} is to be asked for")
        wording = evaluation.load_prompts(prompts)
        benchmarks = evaluation.load_benchmarks(benchmark, wording)
        state = evaluation.join_processes()

        def load_judge(folder: Path) -> evaluation.Judge | None:
            if not judge or not state.is_main_process:
                return None
            url = None if judge_endpoint == "openai" else judge_endpoint
            chat = (
                evaluation.ChatServer(judge, url, concurrency, judge_rpm)
                if judge_endpoint
                else evaluation.LocalChat(judge, state.device)
            )
            cache = folder / "judge_cache.jsonl"
            return evaluation.Judge(chat, wording["judge"], cache, judge_temperature, judge_price, retry_failed)

        def show(folder: Path, found: dict[str, dict[str, Any]]) -> None:
            for metrics in found.values():
                typer.echo(format_summary(metrics))
            for swept in read_sweeps(folder).items() if sweep else ():
                typer.echo(f"\n{format_sweep(*swept)}")
            typer.echo(f"See {folder}")

        if rescore:
            declared = {each.name: each for each in benchmarks}
            for folder, name in evaluation.result_folders(rescore).items() if state.is_main_process else ():
                its = declared.get(name) or evaluation.load_benchmark(name, wording)
                show(folder, evaluation.rescore(folder, its, load_judge(folder.parent), seed))
            return
        variants = [] if sweep and not controls else [evaluation.PLAIN]
        variants += evaluation.CONTROL_VARIANTS if controls else []
        variants += evaluation.parse_sweep(sweep) if sweep else []
        # Before a model is loaded, so that what is wrong with the data is said at once
        samples = [evaluation.read_samples(each, data or ".", limit) for each in benchmarks]
        judging = load_judge(out)
        if endpoint:
            answerer = evaluation.Endpoint(
                evaluation.ChatServer(model, endpoint, concurrency),
                **({"num_frames": num_frames} if num_frames else {}),
            )
        else:
            answerer = _local_model(load, chat_template, batch_size, workers, num_frames)
        later = []
        with hold(out, benchmarks):
            for each, asked in zip(benchmarks, samples, strict=True):
                collected = evaluation.collect(each, answerer, asked, out, variants, limit, retry_failed)
                if state.num_processes > 1 and judge:
                    later.append(collected)  # other processes must not wait for a judge, which may take hours
                elif state.is_main_process:
                    show(collected.folder, evaluation.conclude(collected, judging, seed))
            for collected in later if state.is_main_process else []:
                show(collected.folder, evaluation.conclude(collected, judging, seed))


def _named(context: typer.Context) -> dict[str, str]:
    """The parameters that this call names, and how they are written there."""
    return {
        each.name: each.opts[0] if each.param_type_name == "option" else each.name.upper()
        for each in context.command.params
        if context.get_parameter_source(each.name).name != "DEFAULT"
    }


def _refuse(named: dict[str, str], unused: set[str], why: str) -> None:
    """What would be ignored is refused."""
    if written := [text for name, text in named.items() if name in unused]:
        raise ValueError(f"{why}: leave {', '.join(written)} out")


def _local_model(
    load: Callable[..., Any], chat_template: str | None, batch_size: int, workers: int, num_frames: int | None
) -> "LocalModel":
    """The model of these options, which is loaded for the first answer that is not there yet."""
    from transformers import AutoProcessor

    from pllava.eval import Checkpoint, LocalModel

    model, adapter, alpha, dtype = (load.keywords[name] for name in ("model", "adapter", "alpha", "dtype"))
    quantization = asked_quantization(*(load.keywords[name] for name in ("load_in_4bit", "load_in_8bit")))
    checkpoint = Checkpoint.read(named_model(model, adapter), adapter, alpha, dtype, quantization)
    processor = AutoProcessor.from_pretrained(checkpoint.model)
    if num_frames:
        processor.video_processor.num_frames = num_frames
    return LocalModel(lambda: load()[0], processor, adapter, chat_template, batch_size, workers, checkpoint)
