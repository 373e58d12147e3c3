"""The study's plots: for each experiment its measures, beside the paper's curve where there is one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ....eval.report.paper import PAPER
from ....eval.report.plots import MUTED_MARKERS, WIDTH, Theme, save_plot
from ....files import read_object
from ....pooling_pllava import parse_pooling
from ..settings import CLIPS, STILLS, Setting
from ..tokens import FILE
from ..workshop import Workshop
from .measures import TITLES, measure_seeds
from .verdicts import interval_of

PAPER_GRID, PAPER_ALPHA = 24, 32  # rows of patches; alpha in training
LINES = ("all", "ordered", "caption")  # measures of plots with several
Points = list[tuple[float, list[float]]]  # x, and the values of the seeds


def plot_experiment(workshop: Workshop, name: str, file: Path, page: Path) -> str:
    """Plot an experiment, for light and for dark themes. Returns the Markdown by which a page shows it."""
    return save_plot(lambda theme: PLOTS[name](workshop, theme), file, page)


def plot_lines(axes: Axes, lines: dict[str, Points], theme: Theme) -> None:
    """Draw lines with an interval over the seeds at each point; the first is in the strong colour."""
    for index, (label, points) in enumerate(lines.items()):
        color = theme.model if index == 0 else theme.muted[(index - 1) % 3]
        marker = "o" if index == 0 else MUTED_MARKERS[(index - 1) % len(MUTED_MARKERS)]
        xs, means = [x for x, _ in points], [fmean(values) for _, values in points]
        axes.plot(xs, means, color=color, marker=marker, markersize=5, label=label, zorder=3 - 0.1 * index)
        for x, values in points:
            if len(values) > 1:
                axes.vlines(x, *interval_of(values), color=color, linewidth=1)
    axes.set(ylim=(0, 102))
    axes.grid(axis="y", linewidth=0.6)


def _figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _mark(axes: Axes, x: float, title: str, theme: Theme) -> None:
    """Draw a dotted vertical line with a title, which is legible where other lines cross it."""
    axes.axvline(x, linestyle=":", color=theme.muted[1])
    outline = [withStroke(linewidth=2.5, foreground=theme.page)]
    axes.text(x, 2, title, fontsize=8, rotation=90, ha="right", path_effects=outline, zorder=4)


def _shared_legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)


def _spatial(workshop: Workshop, theme: Theme) -> Figure:
    figure, (ours, theirs) = _figure(2)
    runs = workshop.study.experiments["spatial"].runs
    grid = max(parse_pooling(run["pooling"]).shapes[0][1] for run in runs.values())
    lines = {}
    for name in LINES:
        lines[TITLES[name]] = [
            (
                parse_pooling(run["pooling"]).shapes[0][1] / grid,
                measure_seeds(workshop, "spatial", label, Setting(), name),
            )
            for label, run in runs.items()
        ]
    plot_lines(ours, lines, theme)
    for index, (name, title) in enumerate((("mvbench", "MVBench (%)"), ("vcg", "VCG score, 5 = 100"))):
        scale = 1 if name == "mvbench" else 20
        xs, ys = zip(*PAPER["spatial_pooling"][name].items(), strict=True)
        color = theme.muted[index]
        theirs.plot(
            [int(x) / PAPER_GRID for x in xs], [scale * y for y in ys], ":", marker="o", color=color, label=title
        )
    theirs.set(ylim=(0, 102))
    theirs.grid(axis="y", linewidth=0.6)
    for axes, title in ((ours, "nano, 4 frames"), (theirs, "the paper, 4 frames")):
        axes.set(title=title, xlabel="rows and columns left, of all", ylabel="accuracy (%)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)
    return figure


def _temporal(workshop: Workshop, theme: Theme) -> Figure:
    """Each label is "FRAMES to POOLED": a line for each number of frames, over the pooled ones."""
    figure, panels = _figure(2)
    runs = workshop.study.experiments["temporal"].runs
    for axes, name in zip(panels, ("ordered", "unordered"), strict=True):
        lines: dict[str, Points] = {}
        for label, run in runs.items():
            pooled = parse_pooling({**workshop.study.base, **run}["pooling"]).shapes[0][0]
            values = measure_seeds(workshop, "temporal", label, Setting(), name)
            lines.setdefault(f"{label.split()[0]} frames", []).append((pooled, values))
        plot_lines(axes, {key: sorted(points) for key, points in lines.items()}, theme)
        axes.set(title=TITLES[name], xlabel="pooled to this number of frames", ylabel="accuracy (%)")
        axes.set_xscale("log", base=2)
        ticks = sorted({pooled for points in lines.values() for pooled, _ in points})
        axes.set_xticks(ticks, map(str, ticks))
    _shared_legend(figure, panels[0])
    return figure


def _alpha(workshop: Workshop, theme: Theme) -> Figure:
    experiment = workshop.study.experiments["alpha"]
    figure, panels = _figure(len(experiment.runs))
    sides = {
        "clips, all types": (CLIPS, "all"),
        "clips, captions": (CLIPS, "caption"),
        "images, all types": (STILLS, "all"),
    }
    for axes, label in zip(panels, experiment.runs, strict=True):
        lines = {
            title: [
                (alpha, measure_seeds(workshop, "alpha", label, Setting(about, alpha=alpha), name))
                for alpha in experiment.alphas
            ]
            for title, (about, name) in sides.items()
        }
        plot_lines(axes, lines, theme)
        for name, title in (("mvbench", "the paper's best on MVBench"), ("vcg", "the paper's best on VCG")):
            _mark(axes, PAPER["best_alpha"][name] / PAPER_ALPHA, title, theme)
        axes.set(title=label, xlabel="alpha (1 = training's)")
    panels[0].set_ylabel("accuracy (%)")
    _shared_legend(figure, panels[0])
    return figure


def _prompts(workshop: Workshop, theme: Theme) -> Figure:
    experiment = workshop.study.experiments["prompts"]
    figure, panels = _figure(2)
    for axes, name, title in zip(panels, ("all", "words"), ("accuracy (%)", "words of a caption"), strict=True):
        groups = {
            label: [
                measure_seeds(workshop, "prompts", label, Setting(template=each), name)
                for each in experiment.templates
            ]
            for label in reversed(experiment.runs)
        }
        plot_bars(axes, [template.removeprefix("eval_") for template in experiment.templates], groups, theme)
        axes.set(ylabel=title, xlabel="prompt")
    panels[0].set_ylim(top=102)
    _shared_legend(figure, panels[0])
    return figure


def plot_bars(axes: Axes, places: Sequence[str], groups: dict[str, list[list[float]]], theme: Theme) -> None:
    """Draw a group of bars at each place, with intervals over the seeds; the first group is in the strong colour."""
    width = 0.8 / len(groups)
    for index, (label, values) in enumerate(groups.items()):
        color = theme.model if index == 0 else theme.muted[index + 1]
        xs = [place + (index + 0.5) * width - 0.4 for place in range(len(places))]
        axes.bar(xs, [fmean(each) for each in values], 0.92 * width, color=color, label=label)
        for x, each in zip(xs, values, strict=True):
            if len(each) > 1:
                axes.vlines(x, *interval_of(each), color=theme.text, linewidth=1)
    axes.set_xticks(range(len(places)), places)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.6)


def _tokens(workshop: Workshop, theme: Theme) -> Figure:
    """The quantiles of the norms before and after training: a box for the middle half, a line to 1 and 99 per cent."""
    experiment, seed = workshop.study.experiments["tokens"], workshop.study.seeds[0]
    figure, panels = _figure(2)
    for axes, label in zip(panels, experiment.runs, strict=True):
        statistics = read_object(workshop.folder_of(workshop.study.run("tokens", label, seed)) / FILE)
        ticks = []
        for when in ("before", "after"):
            for kind, title in (("frames", "of frames"), ("pooled", "pooled")):
                low, first, median, third, high, _ = statistics[when]["norms"][kind]
                color = theme.model if when == "after" else theme.muted[1]
                x = len(ticks)
                axes.vlines(x, low, high, color=color, linewidth=1)
                axes.bar(x, third - first, 0.5, bottom=first, color=color)
                axes.hlines(median, x - 0.25, x + 0.25, color=theme.page, linewidth=1.5)
                ticks.append(f"{title}\n{when}")
        axes.set_xticks(range(len(ticks)), ticks, fontsize=9)
        axes.set(title=label, ylabel=f"norm of visual tokens (seed {seed})", ylim=(0, None))
        axes.grid(axis="y", linewidth=0.6)
    return figure


def _scaling(workshop: Workshop, theme: Theme) -> Figure:
    """The base's size over the clips, and all sizes over their widths, beside the paper's."""
    figure, (data, sizes, theirs) = _figure(3)
    study, widths = workshop.study, workshop.recipe.widths
    runs = {label: study.run("scaling", label, study.seeds[0]) for label in study.experiments["scaling"].runs}
    by_clips = {label: run.clips for label, run in runs.items() if run.size == study.base["size"]}
    by_width = {label: widths[run.size] for label, run in runs.items() if run.clips == study.base["clips"]}
    for axes, places in ((data, by_clips), (sizes, by_width)):
        lines = {
            TITLES[name]: sorted(
                (place, measure_seeds(workshop, "scaling", label, Setting(), name)) for label, place in places.items()
            )
            for name in LINES
        }
        plot_lines(axes, lines, theme)
    paper = {int(model.split()[1][:-1]): row for model, row in PAPER["vcg"].items() if model.startswith("PLLaVA")}
    average = PAPER["vcg"]["columns"].index("average")
    theirs.plot(paper.keys(), [20 * row[average] for row in paper.values()], ":o", color=theme.muted[1])
    _log_axis(data, {clips: str(clips) for clips in by_clips.values()}, "training clips")
    _log_axis(sizes, {width: name for name, width in widths.items()}, "size")
    _log_axis(theirs, {size: f"{size}B" for size in paper}, "size")
    for axes, title in ((data, "nano: data"), (sizes, "nano: size"), (theirs, "the paper: VCG, 5 = 100")):
        axes.set(title=title, ylim=(0, 102))
    theirs.grid(axis="y", linewidth=0.6)
    data.set_ylabel("accuracy (%)")
    _shared_legend(figure, data)
    return figure


def _log_axis(axes: Axes, ticks: dict[int, str], title: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), ticks.values())
    axes.minorticks_off()
    axes.set_xlabel(title)


def _image_stage(workshop: Workshop, theme: Theme) -> Figure:
    figure, (axes,) = _figure(1)
    names = ("ordered", "unordered", "caption")
    groups = {
        label: [measure_seeds(workshop, "image stage", label, Setting(), name) for name in names]
        for label in workshop.study.experiments["image stage"].runs
    }
    plot_bars(axes, [TITLES[name] for name in names], groups, theme)
    axes.set(ylabel="accuracy (%)", ylim=(0, 102))
    _shared_legend(figure, axes)
    return figure


def _frontier(workshop: Workshop, theme: Theme) -> Figure:
    """Accuracy over the tokens of a clip, for questions and for captions."""
    experiment = workshop.study.experiments["frontier"]
    (label,) = experiment.runs
    figure, panels = _figure(2)
    trained = parse_pooling({**workshop.study.base, **experiment.runs[label]}["pooling"])
    for axes, name in zip(panels, ("all", "caption"), strict=True):
        lines: dict[str, Points] = {}
        for pooling in map(parse_pooling, [str(trained), *experiment.poolings]):
            setting = Setting() if str(pooling) == str(trained) else Setting(pooling=str(pooling))
            points = lines.setdefault(pooling.name, [])
            points.append((pooling.num_tokens, measure_seeds(workshop, "frontier", label, setting, name)))
        plot_lines(axes, {key: sorted(points) for key, points in lines.items()}, theme)
        _mark(axes, trained.num_tokens, "in training", theme)
        axes.set(title=TITLES[name], xlabel="tokens of a clip", ylabel="accuracy (%)", xlim=(0, None))
    _shared_legend(figure, panels[0])
    return figure


PLOTS: dict[str, Callable[[Workshop, Theme], Figure]] = {
    "spatial": _spatial,
    "temporal": _temporal,
    "alpha": _alpha,
    "prompts": _prompts,
    "tokens": _tokens,
    "scaling": _scaling,
    "image stage": _image_stage,
    "frontier": _frontier,
}
