"""
The declaration of a benchmark: a YAML file in `definitions/`, with the wording of its questions in `prompts.yaml`.
`README.md` shows how to declare a custom benchmark; `readers.py` reads the samples.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from .samples import Sample, digest

DEFINITIONS = Path(__file__).with_name("definitions")
PROMPTS = Path(__file__).with_name("prompts.yaml")
BENCHMARK_GROUPS = {"videoqa": ["msvd_qa", "msrvtt_qa", "activitynet_qa", "tgif_qa"]}
REQUIRED_TASK_KEYS = {  # by reader: the paths that each task must declare
    "mvbench": {"file", "media"},
    "vcgbench": {"file"},
    "videoqa": {"questions", "answers"},
    "recaption": {"file"},
    "rows": {"file"},
}
SCORING_RULES = ("multiple_choice", "exact", "judge", "caption")


@dataclass(frozen=True)
class Benchmark:
    """
    Args:
        name: The name of the YAML file and of the results folder.
        title: The name shown in reports.
        read: The reader: a name in `readers.READERS`, or `FILE.py:FUNCTION`, called with the data folder and the
            benchmark.
        score: The scoring rule: "multiple_choice", "exact", "judge", "caption", or `FILE.py:FUNCTION`, called with a
            sample and its answer. A bool means right or wrong, a number from 0 to 5 is a score.
        tasks: What the reader needs for each task; "judge" lists the aspects that are judged.
        folder: The data folder inside `--data`; if it does not exist, `--data` itself is the data folder.
        hub: A dataset on the Hub that has the files in this layout.
        hub_benchmark: The Benchmark on the Hub whose leaderboard shows the main measure: "id", the dataset's, and
            "task_id", from its eval.yaml.
        prompts: The section of `prompts.yaml` with the wording.
        chat_template: For each template family ("vicuna", "im_start"), a name from `chat_templates_pllava.py`. Models
            of other families keep their own template.
        primer: Text that the answer is made to begin with.
        answer_prefix: The end of the primer that belongs to the answer.
        max_new_tokens: The length limit of an answer.
        stop: Strings that end an answer and are cut off.
        paper: Its table in `report/paper_results.json`.
        choices: For each task, the number of possible answers, if the samples have no options.
        wording: The prompts "system" and "question", read from `prompts.yaml`.
    """

    name: str
    title: str
    read: str
    score: str
    tasks: dict[str, dict[str, Any]]
    folder: str = ""
    hub: str | None = None
    hub_benchmark: dict[str, str] | None = None
    prompts: str | None = None
    chat_template: dict[str, str] = field(default_factory=dict)
    primer: str = ""
    answer_prefix: str = ""
    max_new_tokens: int = 100
    stop: tuple[str, ...] = ()
    paper: str | None = None
    choices: dict[str, int] = field(default_factory=dict)
    wording: dict[str, str] = field(default_factory=dict)
    file: Path = DEFINITIONS

    def aspects(self, task: str) -> list[str]:
        """
        Return the aspects in which a task's answers are judged. A task that only the rows name (by "type") is judged
        like the declared tasks.

        Raises:
            ValueError: if the task is not declared, and the declared tasks have different aspects.
        """
        if task in self.tasks:
            return self.tasks[task]["judge"]
        first, *others = (declared["judge"] for declared in self.tasks.values())
        if any(other != first for other in others):
            raise ValueError(f"{self.file}: which aspects of task {task!r} are judged? Declare it with its `judge`")
        return first

    def chat(self, question: str, media: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages that ask a question. If there is a primer, the last one begins the answer."""
        text = self.wording.get("question", "{question}").replace("{question}", question)
        system = self.wording.get("system")
        return [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": [*media, {"type": "text", "text": text}]},
            *([{"role": "assistant", "content": self.primer}] if self.primer else []),
        ]

    def prompt_hash(self) -> str:
        """Return a hash of everything that shapes the answers besides the samples and the model."""
        return digest([self.wording, self.chat_template, self.primer, self.max_new_tokens, list(self.stop)])

    @cached_property
    def custom_reader(self) -> Callable[..., Iterable[Sample]]:
        """The function that `read` names as `FILE.py:FUNCTION`."""
        return self._load_function(self.read)

    @cached_property
    def custom_rule(self) -> Callable[[Sample, str], bool | float]:
        """The function that `score` names as `FILE.py:FUNCTION`."""
        return self._load_function(self.score)

    def _load_function(self, name: str) -> Callable[..., Any]:
        file, _, function = name.rpartition(":")
        path = self.file.parent / file
        if not file or not path.is_file():
            raise ValueError(
                f"{self.file}: {name!r} is neither a known name nor FILE.py:FUNCTION beside that file; known are "
                f"{sorted(REQUIRED_TASK_KEYS)} for `read` and {sorted(SCORING_RULES)} for `score`"
            )
        spec = importlib.util.spec_from_file_location(f"pllava_benchmark_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ValueError(f"{path} has no function {function!r}")
        return getattr(module, function)


def load_benchmarks(names: str | Iterable[str], prompts: dict[str, dict[str, str]]) -> list[Benchmark]:
    """Load several benchmarks, given as a list or separated by commas; "videoqa" stands for four of them."""
    names = names.split(",") if isinstance(names, str) else names
    single = [each for name in names for each in BENCHMARK_GROUPS.get(name.strip(), [name.strip()])]
    return [load_benchmark(name if "." in name else name.replace("-", "_"), prompts) for name in single]


def load_benchmark(name: str, prompts: dict[str, dict[str, str]]) -> Benchmark:
    """
    Args:
        name: The name of a benchmark in `definitions/`, or the path of a YAML file.
        prompts: The wording, from [`load_prompts`].

    Raises:
        ValueError: if there is no such benchmark, its YAML is invalid, or keys are unknown, missing or of the wrong
            type.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else DEFINITIONS / f"{name}.yaml"
    if not file.is_file():
        known = sorted([path.stem for path in DEFINITIONS.glob("*.yaml")] + list(BENCHMARK_GROUPS))
        raise ValueError(f"{name}: no such benchmark; there are {', '.join(known)}, and custom YAML files")
    values = read_yaml(file)
    allowed = {each.name for each in fields(Benchmark)} - {"name", "file"}
    required = {"title", "read", "score", "tasks"}
    if wrong := (values.keys() - allowed) | (required - values.keys()):
        raise ValueError(f"{file}: {sorted(wrong, key=str)} missing or unknown; required are {sorted(required)}")
    _check_tasks(file, values["tasks"], values["read"], values["score"])
    _check_hub_benchmark(file, values.get("hub_benchmark"))
    values["stop"] = tuple(values.get("stop", ()))
    wording = prompts.get(values.get("prompts"), {})
    return Benchmark(name=file.stem, file=file, **{"wording": wording, **values})


def _check_tasks(file: Path, tasks: Any, read: str, score: str) -> None:
    if not isinstance(tasks, dict) or not all(isinstance(declared, dict) for declared in tasks.values()):
        raise ValueError(
            f"{file}: `tasks` must map names to mappings, as in `tasks: {{all: {{file: a.jsonl}}}}`; got {tasks}"
        )
    aspects = load_prompts()["judge"].keys() - {"system", "correction"}
    for task, declared in tasks.items():
        paths = REQUIRED_TASK_KEYS.get(read, set()) | (declared.keys() & {"media"})
        if wrong := sorted(name for name in paths if not isinstance(declared.get(name), str)):
            raise ValueError(f"{file}: `read: {read}` needs the path of {wrong} for task {task!r}; got {declared}")
        judged = declared.get("judge")
        if score == "judge" and not (isinstance(judged, list) and judged and aspects.issuperset(judged)):
            raise ValueError(
                f"{file}: `score: judge` needs the judged aspects of task {task!r}, as in `judge: [answer]`, from "
                f"{sorted(aspects)}; got {judged}"
            )


def _check_hub_benchmark(file: Path, declared: Any) -> None:
    if declared is None:
        return
    texts = isinstance(declared, dict) and all(isinstance(value, str) and value for value in declared.values())
    if not texts or declared.keys() != {"id", "task_id"} or declared["id"].count("/") != 1:
        raise ValueError(
            f"{file}: `hub_benchmark` names a Benchmark of the Hub and a task in its eval.yaml, as in `hub_benchmark: "
            f"{{id: ORGANISATION/NAME, task_id: default}}`; got {declared}"
        )


def load_prompts(file: str | Path | None = None) -> dict[str, dict[str, str]]:
    """
    Return the wording of questions and judges: `prompts.yaml`, with the texts in `file` replacing ours.

    Raises:
        ValueError: if the file is not such a YAML file, or has a prompt that `prompts.yaml` lacks.
    """
    prompts = read_yaml(PROMPTS)
    for section, texts in read_yaml(Path(file)).items() if file else ():
        unknown = {section} - prompts.keys() or texts.keys() - prompts[section].keys()
        if unknown:
            raise ValueError(f"{file}: unknown prompt {sorted(unknown)}; {PROMPTS.name} lists the known ones")
        prompts[section] = {**prompts[section], **texts}
    return prompts


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file with a mapping; others are a `ValueError`."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is not a YAML mapping, but {type(values).__name__}")
    return values
