"""`pllava eval`: the metrics of a model on benchmarks, and how two models differ."""

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .. import options
from ..program import UsageError, refuse_passed
from . import parameters

if TYPE_CHECKING:
    from pllava.eval import Judge, LocalModel, Variant

# The parameters that make sense only together with others, see `_refuse_unused`
SERVER_JUDGE = {"judge_temperature", "judge_rpm"}
JUDGE = {"judge_endpoint", "judge_price", *SERVER_JUDGE}
LOCAL_MODEL = {"batch_size", "workers", "chat_template", "sweep", *options.OF_LOCAL_MODELS}
RESCORE = {"rescore", "push", "benchmark", "prompts", "concurrency", "judge", "retry_failed", "seed", *JUDGE}


def evaluate(
    context: typer.Context,
    model_name: parameters.ModelArgument = None,
    endpoint: options.Endpoint = None,
    concurrency: options.Concurrency = 8,
    benchmark: parameters.Benchmark = "nano",
    data: parameters.Data = ".",
    limit: parameters.Limit = None,
    controls: parameters.Controls = False,
    sweep: parameters.Sweep = None,
    num_frames: parameters.NumFrames = None,
    allowed_media_domains: options.AllowedMediaDomains = ["*"],  # noqa: B006 (typer copies it)
    chat_template: parameters.ChatTemplate = None,
    prompts: parameters.Prompts = None,
    batch_size: parameters.BatchSize = 16,
    workers: parameters.Workers = 2,
    judge: parameters.Judge = None,
    judge_endpoint: parameters.JudgeEndpoint = None,
    judge_temperature: parameters.JudgeTemperature = 0.0,
    judge_rpm: parameters.JudgeRpm = None,
    judge_price: parameters.JudgePrice = None,
    out: parameters.Out = Path("results"),
    retry_failed: parameters.RetryFailed = False,
    rescore: parameters.Rescore = None,
    compare: parameters.Compare = None,
    push: parameters.Push = None,
    seed: parameters.Seed = 0,
) -> None:
    """
    Evaluate a model on benchmarks.

    The results are predictions, metrics with confidence intervals and coverage, and a report.
    """
    from pllava import eval as evaluation

    _refuse_unused(context)
    model_options = replace(context.obj, model=context.obj.model or model_name)
    if compare:
        _print_comparison(*compare)
        return
    if push:
        from pllava.hub_cards.results_publishing import check_model_exists

        check_model_exists(push)  # now rather than after hours
    wording = evaluation.load_prompts(prompts)
    benchmarks = evaluation.load_benchmarks(benchmark, wording)

    if rescore:
        folder = next(iter(evaluation.result_folders(rescore))).parent
        loaded_judge = load_judge(context.params, wording, folder)
        _print_results(evaluation.rescore_suite(rescore, benchmarks, wording, loaded_judge, seed))
        _push(rescore, push)
        return
    variants = [] if sweep and not controls else [evaluation.PLAIN]
    variants += evaluation.CONTROL_VARIANTS if controls else []
    samples = [evaluation.read_samples(each, data, limit) for each in benchmarks]
    loaded_judge = load_judge(context.params, wording, out)
    if endpoint:
        server = options.chat_server(model_options.model, endpoint, concurrency)
        number = {"num_frames": num_frames} if num_frames else {}
        answerer = evaluation.Endpoint(server, **number, allowed_media_domains=allowed_media_domains)
    else:
        answerer = local_model(model_options, num_frames, chat_template, batch_size, workers, allowed_media_domains)
        variants += _swept(sweep, answerer) if sweep else []
    _print_results(
        evaluation.evaluate_suite(
            benchmarks, samples, answerer, out, variants, loaded_judge, limit, seed, retry_failed
        ),
        with_sweeps=bool(sweep),
    )
    _push(out, push)


def _refuse_unused(context: typer.Context) -> None:
    """
    Raises:
        UsageError: if a parameter of this call would have no effect, or two of them contradict each other.
    """
    everything = {each.name for each in context.command.params}
    values, refuse = context.params, partial(refuse_passed, context)
    if values["compare"]:
        refuse(everything - {"compare"}, "--compare reads saved results as they are")
    if values["rescore"]:
        refuse(everything - RESCORE, "--rescore reads saved answers as they are")
    refuse_unused_judge(context)
    if not values["endpoint"] and not values["judge_endpoint"]:
        refuse({"concurrency"}, "There is neither --endpoint nor --judge-endpoint")
    if values["endpoint"]:
        refuse(LOCAL_MODEL, options.NO_EFFECT_ON_ENDPOINT)
    names = {values["model_name"], context.obj.model} - {None}
    if len(names) > 1:
        raise UsageError(f"MODEL and --model are the same option; got {values['model_name']} and {context.obj.model}")


def refuse_unused_judge(context: typer.Context) -> None:
    """
    Raises:
        UsageError: if an option of a judge would have no effect.
    """
    if not context.params["judge"]:
        refuse_passed(context, JUDGE, "There is no --judge")
    if not context.params["judge_endpoint"]:
        refuse_passed(context, SERVER_JUDGE, "A judge without --judge-endpoint is greedy, and no server")


def load_judge(values: dict[str, Any], wording: dict[str, Any], folder: Path) -> "Judge | None":
    """
    Return the judge that a command's options name, if they name one.

    Args:
        values: The command's parameters.
        wording: From `load_prompts`.
        folder: Gets the cache of the judge's replies.
    """
    from pllava.eval import ChatServer, Judge, LocalChat, join_processes

    name, endpoint = values["judge"], values["judge_endpoint"]
    if not name:
        return None
    if endpoint:
        url = None if endpoint == "openai" else endpoint
        chat = ChatServer(name, url, values["concurrency"], values["judge_rpm"])
    else:
        chat = LocalChat(name, join_processes().device)
    settings = (values[each] for each in ("judge_temperature", "judge_price", "retry_failed"))
    return Judge(chat, wording["judge"], folder / "judge_cache.jsonl", *settings)


def local_model(
    model_options: options.ModelOptions,
    num_frames: int | None,
    chat_template: str | None,
    batch_size: int,
    workers: int,
    allowed_media_domains: list[str],
) -> "LocalModel":
    """Return a model whose weights are loaded when the first answer is needed."""
    from pllava.eval import LocalModel

    checkpoint, processor = model_options.read(num_frames)
    if num_frames:
        processor.video_processor.num_frames = num_frames
    return LocalModel(
        partial(model_options.load, processor),
        processor,
        model_options.adapter,
        chat_template,
        batch_size,
        workers,
        checkpoint,
        allowed_media_domains,
    )


def _swept(sweep: str, model: "LocalModel") -> "list[Variant]":
    """Return the variants of a sweep, for which the model's config is read."""
    from pllava.eval import parse_sweep
    from pllava.loading import load_config

    name, commit = model.checkpoint.model, model.checkpoint.revision
    config = load_config(name, revision=None if os.path.isdir(name) else commit)
    return parse_sweep(sweep, config, model.processor.num_frames)


def _print_results(results: Iterable[tuple[Path, dict[str, dict[str, Any]]]], with_sweeps: bool = False) -> None:
    from pllava.result_files.formatting import format_summary
    from pllava.result_files.variants import format_sweep, read_sweeps

    for folder, metrics in results:
        for each in metrics.values():
            typer.echo(format_summary(each))
        for sweep in read_sweeps(folder).items() if with_sweeps else ():
            typer.echo(f"\n{format_sweep(*sweep)}")
        typer.echo(f"See {folder}")


def _push(results: Path, repo_id: str | None) -> None:
    """Publish results, in the main process, if there is a model to publish them with."""
    from pllava.eval import join_processes
    from pllava.hub_cards.results_publishing import push_results

    if repo_id and join_processes().is_main_process:
        for address in push_results(results, repo_id):
            typer.echo(f"See {address}")


def _print_comparison(first: Path, second: Path) -> None:
    from pllava.eval import compare
    from pllava.eval.report.compare import format_differences

    for name, comparison in compare(first, second).items():
        typer.echo(f"{name}\n{format_differences(comparison)}\n")
