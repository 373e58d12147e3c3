"""`pllava data`: check training data, and upload them to the Hub."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .program import make_program

MAX_PRINTED = 20  # problems, if --out has all of them

Media = Annotated[
    str | None,
    typer.Option(
        help="The folder that paths of videos and images are relative to.",
        metavar="FOLDER",
        show_default="the annotations' folder",
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes that open clips.", metavar="N", show_default="one per core")
]
CORES = os.cpu_count() or 1

data = make_program("Check training data, and upload them to the Hub.")


@data.command("inspect")
def inspect_data(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders or patterns of JSON, JSON Lines, Parquet or WebDataset, datasets on the Hub, and "
            ".yaml files that list such sources, whose paths are all relative to --media.",
            metavar="PATHS",
        ),
    ],
    media: Media = None,
    model: Annotated[
        str, typer.Option(help="Directory or Hub id of the PLLaVA whose tokens are counted.", metavar="NAME")
    ] = "nano",
    revision: Annotated[
        str, typer.Option(help="Branch, tag or commit of the model on the Hub.", metavar="NAME")
    ] = "main",
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for inspection.json, unreadable.jsonl and inspection.png.", metavar="FOLDER"),
    ] = None,
    workers: Workers = CORES,
) -> None:
    """Find the rows and clips that training would skip, and how long the others are. It decodes little."""
    from pllava.extras import needs_extra

    with needs_extra("train"):
        from transformers import AutoProcessor

        import pllava
        from pllava.data.inspection import format_problem, inspect_source
        from pllava.data.inspection_report import format_reports, write_reports
        from pllava.data.sources import read_sources

    processor = AutoProcessor.from_pretrained(pllava.model_path(model), revision=revision)
    reports = []
    for path in paths:
        listed = path.endswith((".yaml", ".yml"))
        for source in read_sources([path], media) if listed else read_sources([{"path": path, "media": media}]):
            reports.append(inspect_source(source, processor, workers))
            if out:  # after each source: its report is kept if the next one fails
                write_reports(reports, model, out)
    problems = [format_problem(report.source.title, problem) for report in reports for problem in report.problems]
    for line in problems[: MAX_PRINTED if out else None]:
        typer.echo(line)
    if out and len(problems) > MAX_PRINTED:
        typer.echo(f"... and {len(problems) - MAX_PRINTED} more, in {out / 'unreadable.jsonl'}")
    typer.echo(f"\n{format_reports(reports)}\n")
    if problems:
        summaries = [report.summary() for report in reports]
        missing, unreadable, malformed, skipped, samples = (
            sum(summary[name] for summary in summaries)
            for name in ("missing", "unreadable", "malformed", "skipped", "samples")
        )
        typer.echo(
            f"{missing} missing, {unreadable} unreadable, {malformed} malformed: training would pass over {skipped} "
            f"of {samples} samples"
        )
        raise typer.Exit(1)


@data.command()
def push(
    path: Annotated[
        str, typer.Argument(help="A file, a folder or a pattern of JSON, Parquet or WebDataset.", metavar="PATH")
    ],
    repo_id: Annotated[
        str, typer.Argument(help="The dataset on the Hub; it is created if there is none.", metavar="USER/NAME")
    ],
    media: Media = None,
    split: Annotated[
        str, typer.Option(help="The split's name on the Hub; rows that are in it are replaced.", metavar="NAME")
    ] = "train",
    license: Annotated[
        str | None, typer.Option(help="The license of the clips, for the card.", metavar="NAME")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a new dataset as a private one.")] = False,
    max_shard_size: Annotated[
        str, typer.Option(help="Size limit of a Parquet file; each is written to the disk first.", metavar="SIZE")
    ] = "500MB",
    workers: Workers = CORES,
) -> None:
    """Upload a local source to the Hub, with its clips in Parquet files. What cannot be read is left out."""
    from pllava.extras import needs_extra

    with needs_extra("train"):
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
