"""`pllava reproduce`: a cell of the paper's tables, again."""

from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from .. import options
from ..program import refuse_passed
from . import load_judge, local_model, parameters, refuse_unused_judge

if TYPE_CHECKING:
    from pllava.eval.reproduce.lock import Lock

cell_option = partial(typer.Option, rich_help_panel="Cells")

Cell = Annotated[
    str | None,
    typer.Argument(help="TABLE/MODEL/BENCHMARK, such as table2/7b/mvbench.", metavar="CELL", show_default="list all"),
]
ListCells = Annotated[
    bool, cell_option("--list", help="Show all cells, with the paper's figure and what each would take.")
]
DryRun = Annotated[bool, cell_option("--dry-run", help="Show what CELL would take. Nothing is downloaded or run.")]
OtherModel = Annotated[
    str | None,
    options.option(
        help="Directory or Hub id of another PLLaVA; nano is the small one in the package.",
        metavar="NAME",
        show_default="the lock's, converted in OUT/models",
    ),
]
OtherData = Annotated[
    str | None,
    parameters.benchmark_option(
        help="A folder with the benchmark's files, or another dataset on the Hub.",
        metavar="FOLDER",
        show_default="the lock's dataset",
    ),
]
JudgeTemperature = Annotated[
    float | None,
    parameters.judge_option(
        help="Sampling temperature.", metavar="NUMBER", show_default="the lock's, 0 of a local judge"
    ),
]
Out = Annotated[
    Path,
    parameters.results_option(
        help="A folder that gets the results at the cell's address. A run that was stopped continues there.",
        metavar="FOLDER",
    ),
]


def reproduce(
    context: typer.Context,
    cell: Cell = None,
    list_cells: ListCells = False,
    dry_run: DryRun = False,
    model: OtherModel = None,
    data: OtherData = None,
    limit: parameters.Limit = None,
    prompts: parameters.Prompts = None,
    batch_size: parameters.BatchSize = 16,
    workers: parameters.Workers = 2,
    concurrency: options.Concurrency = 8,
    judge: parameters.Judge = None,
    judge_endpoint: parameters.JudgeEndpoint = None,
    judge_temperature: JudgeTemperature = None,
    judge_rpm: parameters.JudgeRpm = None,
    judge_price: parameters.JudgePrice = None,
    out: Out = Path("reproduced"),
    retry_failed: parameters.RetryFailed = False,
) -> None:
    """
    Reproduce a cell of the paper's tables 2 and 3.

    A cell has a lock: model, alpha, data, frames, prompts and judge. The command runs the evaluation, says whether
    the paper's figures lie within its intervals, and names what differs from the lock and from the paper.
    """
    _refuse_unused(context)
    from pllava.eval import load_benchmark, load_prompts
    from pllava.eval.reproduce.cost import format_cells, format_plan
    from pllava.eval.reproduce.data import Data, fetch_data, read_locked_samples
    from pllava.eval.reproduce.lock import find_lock, load_locks
    from pllava.eval.reproduce.reproduction import format_reproduction, reproduce

    if cell is None:
        typer.echo(format_cells(load_locks().values()))
        return
    lock = find_lock(cell)
    if dry_run:
        typer.echo(format_plan(lock))
        return
    if lock.judge is None:
        refuse_passed(context, {"judge"}, f"{cell} needs no judge")
    wording = load_prompts(prompts)
    benchmark = load_benchmark(lock.benchmark, wording)
    source = Data.given(data) if data else fetch_data(lock, benchmark)
    samples = read_locked_samples(lock, benchmark, source, limit)
    if judge_temperature is None:  # a local judge is greedy
        judge_temperature = lock.judge_temperature if judge_endpoint else 0.0
    loaded_judge = load_judge({**context.params, "judge_temperature": judge_temperature}, wording, out)
    model_options: options.ModelOptions = context.obj
    if model_options.model is None and model_options.adapter is None:
        model_options = replace(model_options, model=str(_convert_locked_model(lock, out / "models")))
    answerer = local_model(model_options, None, None, batch_size, workers, [])
    reproduced = reproduce(lock, benchmark, answerer, source, samples, out, loaded_judge, limit, retry_failed)
    if reproduced:
        folder, reproduction = reproduced
        typer.echo(f"{format_reproduction(reproduction)}\n\nSee {folder}")


def _convert_locked_model(lock: "Lock", folder: Path) -> Path:
    """
    Convert the checkpoint on the Hub that a lock names to a directory in `folder`, with its LoRA merged at the lock's
    alpha, unless it is there.

    Raises:
        ValueError: if the Hub does not provide it, or it cannot be converted.
    """
    from huggingface_hub.utils import WeakFileLock

    from pllava.convert import convert
    from pllava.eval.reproduce.cost import weight_bytes

    out = folder / f"{PurePosixPath(lock.model).name}-alpha-{lock.alpha:g}"
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / f".{out.name}.lock"):  # one process converts, the others wait
        if out.exists():
            return out
        settings = {"num_frames": lock.num_frames, "pooling": lock.pooling, "report": typer.echo}
        try:
            return convert(lock.model, out, alpha=lock.alpha, revision=lock.model_revision, **settings)
        except ValueError as error:
            raise ValueError(
                f"{lock.cell} takes the model {lock.model}, {weight_bytes(lock) / 1e9:.1f} GB. Pass another one, or a "
                f"directory that `pllava convert` wrote, with --model. {error}"
            ) from error


def _refuse_unused(context: typer.Context) -> None:
    """
    Raises:
        UsageError: if a parameter of this call would have no effect.
    """
    everything = {each.name for each in context.command.params}
    values, refuse = context.params, partial(refuse_passed, context)
    if values["list_cells"] or values["cell"] is None:
        refuse(everything - {"list_cells"}, "Without CELL, and with --list, all cells are shown")
    if values["dry_run"]:
        refuse(everything - {"cell", "dry_run"}, "--dry-run runs nothing")
    if context.obj.model is None and context.obj.adapter is None:
        refuse({"revision"}, "The lock has the revision of its model")
    refuse_unused_judge(context)
    if not values["judge_endpoint"]:
        refuse({"concurrency"}, "There is no --judge-endpoint")
