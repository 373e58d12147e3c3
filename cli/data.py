"""`pllava data`: check training data before training on them, and put them on the Hub."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .options import said_without_traceback

SHOWN = 20  # problems that are written on the screen where a file has them all

Media = Annotated[
    str | None,
    typer.Option(help="The folder that paths of videos and images are relative to; by default the annotations'."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that open clips.", show_default="one a core")]
CORES = os.cpu_count() or 1

data = typer.Typer(help="Check training data, and put them on the Hub.", no_args_is_help=True)


@data.command("inspect")
def inspect_data(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders or patterns of JSON, JSON Lines, Parquet or WebDataset, datasets of the Hub, and "
            ".yaml files that list such sources: of one, --media is the folder that all its paths are relative to."
        ),
    ],
    media: Media = None,
    model: Annotated[str, typer.Option(help="Directory or Hub id of the PLLaVA whose tokens are counted.")] = "nano",
    out: Annotated[
        Path | None, typer.Option(help="A folder for inspection.json, unreadable.jsonl and inspection.png.")
    ] = None,
    workers: Workers = CORES,
) -> None:
    """Find the rows and clips that training would pass over, and how long the others are; decodes little."""
    with said_without_traceback("train"):
        from transformers import AutoProcessor

        import pllava
        from pllava.data.inspection import format_problem, inspect_source
        from pllava.data.inspection_report import format_reports, write_reports
        from pllava.data.sources import read_sources

        processor = AutoProcessor.from_pretrained(pllava.model_path(model))
        reports = []
        for path in paths:
            listed = path.endswith((".yaml", ".yml"))
            for source in read_sources([path], media) if listed else read_sources([{"path": path, "media": media}]):
                reports.append(inspect_source(source, processor, workers))
                if out:  # after each source, so that what is done stays if the next one fails
                    write_reports(reports, model, out)
    problems = [format_problem(report.source.title, problem) for report in reports for problem in report.problems]
    for line in problems[: SHOWN if out else None]:
        typer.echo(line)
    if out and len(problems) > SHOWN:
        typer.echo(f"... and {len(problems) - SHOWN} more, in {out / 'unreadable.jsonl'}")
    typer.echo(f"\n{format_reports(reports)}\n")
    if problems:
        found = [report.summary() for report in reports]
        missing, unreadable, malformed, skipped, samples = (
            sum(summary[name] for summary in found)
            for name in ("missing", "unreadable", "malformed", "skipped", "samples")
        )
        typer.echo(
            f"{missing} missing, {unreadable} unreadable, {malformed} malformed: training would pass over {skipped} "
            f"of {samples} samples"
        )
        raise typer.Exit(1)


@data.command()
def push(
    path: Annotated[str, typer.Argument(help="A file, a folder or a pattern of JSON, Parquet or WebDataset.")],
    repo_id: Annotated[str, typer.Argument(help="The dataset on the Hub, USER/NAME; it is made if need be.")],
    media: Media = None,
    split: Annotated[
        str, typer.Option(help="Its name on the Hub; rows that are there under it are replaced.")
    ] = "train",
    license: Annotated[str | None, typer.Option(help="The terms of the clips, for the card.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Of a new dataset: not for everyone to see.")] = False,
    max_shard_size: Annotated[str, typer.Option(help="Of a Parquet file; it is written to the disk first.")] = "500MB",
    workers: Workers = CORES,
) -> None:
    """Put a local source on the Hub, its clips in its Parquet files. What cannot be read is left out, and named."""
    with said_without_traceback("train"):
        from pllava.data.publishing import publish
        from pllava.data.sources import Source

        source = Source(path, media=media, license=license)
        counts = publish(source, repo_id, split, private, max_shard_size, workers, report=typer.echo)
    typer.echo(
        f"{repo_id}, {split}: {counts.samples} samples with {counts.clips} clips and {counts.images} images, "
        f"{counts.bytes / 1e6:.2f} MB in {counts.shards} shards"
    )
    if counts.left_out_samples:
        typer.echo(
            f"{counts.left_out_samples} samples were left out, for {counts.left_out_clips} clips or images and "
            f"{counts.malformed} malformed rows"
        )
