"""Reports, plots and comparisons of runs with scripted answers."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from pllava import PllavaConfig
from pllava.data.inspection import ClipStatistics, Report
from pllava.data.inspection_report import write_reports
from pllava.data.sources import Source
from pllava.eval import CONTROL_VARIANTS, PLAIN, Judge, compare, evaluate, load_benchmark, load_prompts, parse_sweep
from pllava.eval.benchmarks.benchmark import digest
from pllava.eval.models.answerer import Answer, Timing
from pllava.eval.models.openai_client import Reply
from pllava.eval.report.compare import format_differences
from pllava.eval.report.paper import PAPER
from pllava.eval.report.plots import DARK, LIGHT, _draw_alpha, _draw_pooling, _draw_tasks
from pllava.eval.report.report import write_report
from pllava.files import to_lines
from pllava.result_files.formatting import format_summary, format_value, model_name
from pllava.result_files.variants import read_sweeps

OPTIONS = ["Ran.", "Sat.", "Fell.", "Left."]
TASKS = {"Action Sequence": 4, "Action Count": 2}  # of MVBench, and the numbers of options
QUESTIONS = 16  # of each task
CONFIG = PllavaConfig()
SWEEPS = [
    *parse_sweep("alpha=0,8,32", CONFIG),
    *parse_sweep("pooling=average-16x3x3,average-16x1x1,average-4x3x3", CONFIG),
]


class ScriptedModel:
    """Answers three of four questions of the plain run correctly, and none of the variants'."""

    def __init__(self, model="/runs/my-pllava/checkpoint", form="({letter}) {text}"):
        self.model, self.form, self.timing = model, form, Timing()

    def describe(self, variant):
        pooling = variant.pooling or "average-16x3x3"
        return {"model": self.model, "control": variant.control, "alpha": variant.alpha, "pooling": pooling}

    def answers(self, work):
        for variant in work.variants:
            for number, sample in enumerate(work.samples):
                right = sample.options.index(sample.reference) if sample.options else 0
                index = right if variant == PLAIN and number % 4 else (right + 1) % max(len(sample.options), 1)
                text = sample.options[index] if sample.options else "Ran."
                yield variant, [(sample, Answer((self.form.format(letter="ABCD"[index], text=text),)))]


def declare_benchmark(folder, score="multiple_choice", prompts=None, options=True, **keys):
    """Declare a benchmark with the `TASKS` of MVBench."""
    for task, count in TASKS.items():
        rows = [
            {"id": f"{task}{n}", "type": task, "video": f"{n}.mp4", "question": "What?", "answer": OPTIONS[n % count]}
            | ({"options": OPTIONS[:count]} if options else {})
            for n in range(QUESTIONS)
        ]
        (folder / f"{task}.jsonl").write_text(to_lines(rows))
    for number in range(QUESTIONS):
        (folder / f"{number}.mp4").touch()
    tasks = {task: {"file": f"{task}.jsonl", "short": "AS", "judge": ["answer"]} for task in TASKS}
    declared = {"title": "Mine", "read": "rows", "score": score, "prompts": "mvbench", "tasks": tasks, **keys}
    (folder / "mine.yaml").write_text(yaml.safe_dump(declared))
    return load_benchmark(str(folder / "mine.yaml"), prompts or load_prompts())


def run(folder, benchmark=None, answerer=None, variants=(PLAIN,), **options):
    benchmark = benchmark or declare_benchmark(folder)
    found = evaluate(benchmark, answerer or ScriptedModel(), str(folder), folder / "out", variants, **options)
    return found, folder / "out" / "mine"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The metrics and the folder of a run with controls and sweeps."""
    return run(tmp_path_factory.mktemp("whole"), variants=[PLAIN, *CONTROL_VARIANTS, *SWEEPS])


# --- units, names, comparisons ---------------------------------------------------------------------------------------


def test_report_shows_per_cent_and_metrics_json_fractions(whole):
    found, folder = whole
    assert found[""]["accuracy"] == json.loads((folder / "metrics.json").read_text())["accuracy"] == 0.75
    report = (folder / "report.md").read_text()
    assert "| accuracy (%) | 75.0 [" in report and "0.75" not in report
    assert "| task | samples | coverage | my-pllava, accuracy (%) |" in report
    assert "accuracy (%) 75.0 [" in format_summary(found[""])
    assert format_value("rouge_l", 0.5) == "50.0" and format_value("score", 2.5) == "2.50"
    (entry,) = yaml.safe_load((folder / "model-index.yaml").read_text())["model-index"]
    assert entry["name"] == "my-pllava"
    figures = {each["name"]: each["value"] for each in entry["results"][0]["metrics"]}
    assert figures == {"accuracy (%)": 75.0, "accuracy_legacy (%)": 75.0}
    assert entry["results"][0]["dataset"]["args"]["coverage_percent"] == 100


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("ermu2001/pllava-7b", "pllava-7b"),
        ("pllava-7b", "pllava-7b"),
        ("/somewhere/nano/checkpoint", "nano"),
        ("nano/checkpoint/", "nano"),
        ("runs/my-nano/checkpoint-40", "my-nano/checkpoint-40"),
        ("/hub/models--me--my-nano/snapshots/0123abc", "my-nano"),
    ],
)
def test_model_name(source, name):
    assert model_name(source) == name


def test_model_name_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my-nano" / "checkpoint").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-nano")
    assert model_name(".") == model_name("checkpoint") == "my-nano"


def test_progress_bar_shows_the_accuracy_without_controls(tmp_path, capfd):
    run(tmp_path, variants=[PLAIN, *CONTROL_VARIANTS])
    assert re.findall(r"accuracy=([\d.]+%)", capfd.readouterr().err)[-1] == "75.0%"


def test_compare_names_the_runs(whole):
    _, folder = whole
    table = format_differences(compare(folder, folder / "no_video")["mine"])
    assert table.startswith("| task | samples | my-pllava | my-pllava, no video | difference in accuracy (%) [95 %")
    assert table.splitlines()[-1].startswith("| all | 32 | 75.0 | 0.0 | -75.0 [")
    assert table.endswith("| < 0.001 |") and "0.000" not in table
    same = compare(folder, folder / "alpha=8")["mine"]
    assert same.names == (f"my-pllava ({folder})", f"my-pllava ({folder / 'alpha=8'})")


def test_equal_runs_have_a_zero_interval(whole):
    """Differences are not fractions: equal ones do not get the interval of Clopper and Pearson."""
    _, folder = whole
    assert {each.interval for each in compare(folder, folder)["mine"].differences} == {(0, 0)}
    assert "| 0.0 [0.0, 0.0] | 1.000 |" in format_differences(compare(folder, folder)["mine"])
    assert compare(folder / "no_video", folder / "one_frame")["mine"].differences[-1].interval == (0, 0)


@pytest.mark.parametrize("score", [0, 1])
def test_equal_grades_have_an_interval_of_width_zero(tmp_path, score):
    class Same(Grader):
        def replies(self, chats, **_):
            reply = Reply(json.dumps({"pred": "yes", "score": score}))
            yield from ((number, reply) for number in range(len(chats)))

    judge = Judge(Same("one"), load_prompts()["judge"], tmp_path / "cache.jsonl")
    found = run(tmp_path, declare_benchmark(tmp_path, score="judge"), judge=judge)[0][""]
    assert found["score_ci"] == (score, score) and found["accuracy"] == 1 and found["accuracy_ci"][0] < 1


# --- notes on the measures -------------------------------------------------------------------------------------------


def test_accuracy_legacy_is_explained(whole):
    report = (whole[1] / "report.md").read_text()
    assert re.search(r"\| accuracy_legacy \(%\), by the original's matcher, .* \| 75.0 \[", report)


def test_accuracy_legacy_is_left_out_if_no_answer_has_a_letter(tmp_path):
    found, folder = run(tmp_path, answerer=ScriptedModel(form="{text}"))
    assert found[""]["accuracy"] == 0.75 and not {"accuracy_legacy", "legacy"} & found[""].keys()
    assert (
        "No accuracy_legacy: the original's matcher looks for an option's letter" in (folder / "report.md").read_text()
    )
    assert "accuracy_legacy" not in (folder / "model-index.yaml").read_text()


def test_unreadable_clips_are_a_task_of_the_legacy_table(tmp_path):
    class Blind(ScriptedModel):
        def answers(self, work):
            yield PLAIN, [(work.samples[1], Answer(error="no such file"))]
            yield from super().answers(replace(work, samples=[work.samples[0], *work.samples[2:]]))

    found = run(tmp_path, answerer=Blind())[0][""]
    assert found["legacy"]["error_reading_video"] == 0 and found["legacy"]["Avg"] == 100 * found["accuracy_legacy"]


def test_chance_is_one_over_the_number_of_options(whole, tmp_path):
    tasks = whole[0][""]["per_task"]
    assert {task: found["chance"] for task, found in tasks.items()} == {task: 1 / n for task, n in TASKS.items()}
    assert whole[0][""]["chance"] == pytest.approx(0.375)
    benchmark = declare_benchmark(tmp_path, score="exact", options=False, choices={"Action Count": 2})
    found = run(tmp_path, benchmark)[0][""]
    assert found["per_task"]["Action Count"]["chance"] == 0.5
    assert "chance" not in found and "chance" not in found["per_task"]["Action Sequence"]


@pytest.mark.parametrize(
    ("words", "published", "note"),
    [
        (None, None, "ours, not the paper's"),
        ("Look.", None, "from `--prompts`, not the paper's"),
        ("Look  closely.\n", "Look closely.", "the paper's"),
    ],
)
def test_report_says_whether_the_wording_is_the_papers(tmp_path, monkeypatch, words, published, note):
    prompts = load_prompts()
    if words:
        prompts["mvbench"] = {"system": words, "question": "{question}"}
    if published:
        told = ["".join(text.split()) for text in (published, "{question}")]
        monkeypatch.setitem(PAPER["wording"], "mvbench", [digest(told)])
    _, folder = run(tmp_path, declare_benchmark(tmp_path, prompts=prompts, paper="mvbench"))
    lines = (folder / "report.md").read_text().splitlines()
    assert "| measure | value [95 % interval] | wording |" in lines
    assert all(line.endswith(f"] | {note} |") for line in lines if line.startswith("| accuracy"))


class Grader:
    def __init__(self, model):
        self.model = model

    def replies(self, chats, **_):
        yield from ((number, Reply('{"pred": "yes", "score": 4}')) for number in range(len(chats)))


@pytest.mark.parametrize(
    ("model", "whose"), [("gpt-3.5-turbo-0125", "the paper's"), ("other", "not the paper's gpt-3.5-turbo-0125")]
)
def test_report_says_whether_the_judge_is_the_papers(tmp_path, model, whose):
    judge = Judge(Grader(model), load_prompts()["judge"], tmp_path / "cache.jsonl")
    _, folder = run(tmp_path, declare_benchmark(tmp_path, score="judge", paper="mvbench"), judge=judge)
    lines = (folder / "report.md").read_text().splitlines()
    beside = [line.split(" | ")[0] for line in lines if line.endswith(f" | {model}, {whose} |")]
    assert beside == ["| accuracy (%)", "| score (0 to 5)", "| answer (0 to 5; 32 graded, 0 failed)"]


# --- sweeps and plots ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [False, True])
def test_report_has_the_sweeps(whole, tmp_path, alone):
    folder = run(tmp_path, variants=SWEEPS)[1] if alone else whole[1]
    report = (folder / "report.md").read_text()
    assert "| accuracy (%) by alpha | 0 | 8 | 32 |" in report
    assert "| accuracy (%) by pooling | average-16x1x1 | average-4x3x3 | average-16x3x3 |" in report
    pictures = re.findall(r'src(?:set)?="([^"]+)"', report)
    assert sorted(pictures) == sorted(file.name for file in folder.glob("*.png"))
    assert {"sweep_alpha.png", "sweep_alpha_dark.png"} < set(pictures) and not list(folder.glob("sweep*.md"))
    if alone:  # a swept setting is not listed as a setting of the run
        assert "my-pllava by alpha" in report and "- alpha:" not in report and "- pooling:" not in report


def test_variants_of_another_run_are_left_out_with_a_note(tmp_path):
    """Of sweeps the older values, of controls those of another run."""
    run(tmp_path, variants=[*CONTROL_VARIANTS[:2], *SWEEPS])
    later = [PLAIN, CONTROL_VARIANTS[2], *parse_sweep("alpha=20", CONFIG)]
    later += parse_sweep("pooling=average-8x3x3,average-2x3x3", CONFIG)
    _, folder = run(tmp_path, answerer=ScriptedModel("/runs/other"), variants=later, limit=1)
    report = (folder / "report.md").read_text()
    assert "| accuracy (%) by alpha | 20 |\n" in report and "## other by alpha" in report
    assert "| accuracy (%) by pooling | average-2x3x3 | average-8x3x3 |\n" in report and "my-pllava" not in report
    why = "Left out because they come from another model, other samples or other settings: "
    left_out = [set(line.removeprefix(why).removesuffix(".").split(", ")) for line in re.findall(f"{why}.*", report)]
    swept = {each.name for each in SWEEPS}
    alphas = {name for name in swept if name.startswith("alpha")}
    assert left_out == [{"no_video", "one_frame"}, alphas, swept - alphas]
    assert "| other, accuracy (%) | frames shuffled |\n" in report


def test_missing_setting_equals_none(tmp_path):
    """As in files that are older than the setting."""
    _, folder = run(tmp_path, variants=[PLAIN, CONTROL_VARIANTS[0], *SWEEPS[:2]])
    for name in ("no_video", "alpha=0"):
        found = json.loads((folder / name / "metrics.json").read_text())
        del found["run"]["limit"]
        (folder / name / "metrics.json").write_text(json.dumps(found))
    write_report(load_benchmark(str(tmp_path / "mine.yaml"), load_prompts()), folder)
    assert "Left out" not in (folder / "report.md").read_text()
    assert [alpha for alpha, _ in read_sweeps(folder)["alpha"]] == [0, 8]


def test_poolings_are_compared_over_their_tokens(tmp_path):
    """A line for each strategy and number of frames, and the paper's, which has 4 frames."""
    swept = "pooling=average-16x3x3,average-4x6x6,average-16x4x4,merge,slowfast,slowfast-4x6x6+16x1x1"
    _, folder = run(tmp_path, variants=parse_sweep(swept, CONFIG))
    points = read_sweeps(folder)["pooling"]
    assert [value for value, _ in points] == [
        "average-16x3x3",
        "average-4x6x6",
        "slowfast-4x6x6+16x1x1",
        "average-16x4x4",
        "merge-8x12x12",
        "slowfast-4x12x24+16x4x4",
    ]
    (panel,) = _draw_pooling(load_benchmark("mvbench", load_prompts()), points, "accuracy", LIGHT).axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("tokens of a clip", "accuracy (%)")
    lines = {line.get_label(): list(line.get_xdata()) for line in panel.lines}
    assert lines.pop("chance")
    published = [4 * int(side) ** 2 for side in PAPER["spatial_pooling"]["mvbench"]]
    assert lines == {
        "average, 16 frames": [144, 256],
        "average, 4 frames": [144],
        "slowfast": [160, 1408],
        "merge, 8 frames": [1152],
        "average, 4 frames, in the paper": published,
    }


def test_plot_of_many_tasks_is_legible(whole, tmp_path):
    """Twenty tasks with four controls: the best first, one strong colour, from 0 to 100 %."""
    part = {"accuracy": 0.5, "accuracy_ci": (0.4, 0.6), "chance": 0.25}
    tasks = {f"Task {number}": {**part, "accuracy": (number * 7 % 20) / 20} for number in range(20)}
    columns = {title: {**part, "per_task": tasks} for title in ("model", "no", "one", "shuffled", "reversed")}
    figure = _draw_tasks(columns, "accuracy", LIGHT)
    figure.savefig(tmp_path / "tasks.png", dpi=120)
    width, height = Image.open(tmp_path / "tasks.png").size
    assert width <= 1000 and height <= 1600
    panel = figure.axes[0]
    assert panel.get_xlim() == (0, 100) and panel.get_xlabel() == "accuracy (%)"
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names[:2] == ["all", "Task 17"] and names[-1] == "Task 0" and panel.yaxis_inverted()
    model, *controls = [bars[0].get_facecolor()[:3] for bars in panel.containers]
    assert rgb_to_hsv(model)[1] > 0.5 > 0.2 > max(rgb_to_hsv(control)[1] for control in controls)
    assert len(set(controls)) == 4
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["model", "no", "one", "shuffled", "reversed", "chance"]


@pytest.mark.parametrize("controls", range(5))
def test_bars_of_controls_are_thinner_than_the_models(controls):
    part = {"accuracy": 0.5, "accuracy_ci": (0.4, 0.6)}
    columns = {f"run {number}": {**part, "per_task": {"A": part, "B": part}} for number in range(1 + controls)}
    model, *others = _draw_tasks(columns, "accuracy", LIGHT).axes[0].containers
    assert all(bars[0].get_height() < model[0].get_height() / 2 for bars in others)
    top, bottom = model[0].get_y(), max(bars[0].get_y() + bars[0].get_height() for bars in (model, *others))
    assert top + bottom == pytest.approx(0, abs=0.05), "around the task's name"


@pytest.mark.parametrize("controls", range(5))
def test_long_name_fits_into_the_legend(controls):
    name = "a-very-long-name-of-a-tuned-model-with-a-lora/checkpoint-12000 at alpha 4"
    part = {"accuracy": 0.5, "accuracy_ci": (0.4, 0.6), "chance": 0.25, "run": {"model": name}}
    titles = [name, "no video", "one frame", "frames shuffled", "frames reversed"][: 1 + controls]
    tasks = _draw_tasks({title: {**part, "per_task": {"A": part}} for title in titles}, "accuracy", LIGHT)
    sweep = _draw_alpha(load_benchmark("mvbench", load_prompts()), [(4.0, part)], "accuracy", LIGHT)
    for figure, legend in ((tasks, tasks.legends[0]), (sweep, sweep.axes[0].get_legend())):
        figure.draw_without_rendering()
        extent = legend.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width
        read = "".join(legend.get_texts()[0].get_text().split())
        assert read in ("".join(name.split()), "".join(model_name(name).split()))


def test_control_without_a_value_has_no_bar():
    part = {"accuracy": 0.5, "accuracy_ci": (0.4, 0.6)}
    columns = {title: {**part, "per_task": {"A": part, "B": other}} for title, other in (("model", part), ("no", {}))}
    model, control = _draw_tasks(columns, "accuracy", LIGHT).axes[0].containers
    assert (len(model), len(control)) == (3, 2)


def test_integer_axes_have_integer_ticks(whole):
    benchmark, sweeps = load_benchmark("nano", load_prompts()), read_sweeps(whole[1])
    for draw, setting in ((_draw_alpha, "alpha"), (_draw_pooling, "pooling")):
        figure = draw(benchmark, sweeps[setting], "accuracy", DARK)
        figure.draw_without_rendering()
        assert all(float(tick).is_integer() for panel in figure.axes for tick in panel.get_xticks())
        assert figure.axes[0].get_ylabel() == "accuracy (%)"


def test_axis_with_one_integer_has_one_tick(whole):
    benchmark, sweeps = load_benchmark("nano", load_prompts()), read_sweeps(whole[1])
    found = sweeps["alpha"][0][1]
    for draw, value, ticks in ((_draw_alpha, 4.0, [4]), (_draw_pooling, "average-1x1x3", [3])):
        figure = draw(benchmark, [(value, found)], "accuracy", LIGHT)
        assert _visible_ticks(figure.axes[0]) == ticks
    assert len(_visible_ticks(_draw_alpha(benchmark, [(0.5, found), (1.2, found)], "accuracy", LIGHT).axes[0])) > 2


def _visible_ticks(panel):
    """Return the ticks within the limits."""
    low, high = panel.get_xlim()
    return [tick for tick in panel.get_xticks() if low <= tick <= high]


def test_histogram_of_one_integer_has_one_tick(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    clips = {("0.mp4",): ClipStatistics("video", "0.mp4", 3, 2.5)}
    report = Report(Source("rows.jsonl"), clips, tokens=[7])
    write_reports([report], "nano", tmp_path)
    ticks = {panel.get_xlabel(): _visible_ticks(panel) for panel in drawn}
    assert (ticks["frames"], ticks["tokens"]) == ([3], [7]) and len(ticks["seconds"]) > 2


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_enough_contrast(theme):
    def luminance(color):
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    def contrast(color):
        """Return the contrast ratio of WCAG, from 1 to 21."""
        darker, lighter = sorted((luminance(color), luminance(theme.page)))
        return (lighter + 0.05) / (darker + 0.05)

    assert contrast(theme.text) > 7 and contrast(theme.model) > 4.5
    greys = [contrast(grey) for grey in theme.muted]
    assert greys == sorted(greys, reverse=True) and greys[-1] > 2


def test_plots_have_a_light_and_a_dark_version(whole):
    for page, theme in (("per_task.png", LIGHT), ("per_task_dark.png", DARK)):
        with Image.open(Path(whole[1], page)) as picture:
            assert picture.convert("RGB").getpixel((0, 0)) == tuple(round(255 * part) for part in to_rgb(theme.page))
