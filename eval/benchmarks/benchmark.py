"""
A benchmark as declared data: a YAML file (`definitions/`), a function that reads its samples, and a rule for what an
answer is worth. `README.md` says how to declare one's own.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from .samples import Sample, digest

DIRECTORY = Path(__file__).with_name("definitions")
PROMPTS = Path(__file__).with_name("prompts.yaml")
GROUPS = {"videoqa": ["msvd_qa", "msrvtt_qa", "activitynet_qa", "tgif_qa"]}
NEEDED = {  # of a task, by its reader: where its files are
    "mvbench": {"file", "media"},
    "vcgbench": {"file"},
    "videoqa": {"questions", "answers"},
    "recaption": {"file"},
    "rows": {"file"},
}
SCORES = ("multiple_choice", "exact", "judge", "caption")


@dataclass(frozen=True)
class Benchmark:
    """
    Args:
        name: Of its results' folder, and of its YAML file.
        title: For people.
        read: Gives the samples: one of `readers.py` by its name, or `file.py:function`, called with the folder of the
            data and the benchmark.
        score: "multiple_choice", "exact", "judge" or "caption", or `file.py:function`, called with a sample and the
            answer to it; a bool says whether the answer is right, a number from 0 to 5 how good it is.
        tasks: What the reader needs to know of each task; "judge" lists the aspects of its answers that are judged.
        folder: Where the data are inside `--data`, as the original lays them out; `--data` itself where it is missing.
        hub: The dataset on the Hub that has the files in this layout.
        prompts: The name of its wording in `prompts.yaml`.
        chat_template: Of `chat_templates_pllava.py`, by the family of the model's own; by default the model's own.
        primer: What the answer is made to begin with; `answer_prefix` is what of it belongs to the answer.
        max_new_tokens: The length limit of an answer.
        stop: What ends an answer, and is cut off.
        paper: Its table in `report/paper_results.json`.
        choices: How many answers a question allows, by task, where the samples themselves bring no options.
        wording: "system" and "question" as models are told them; filled from `prompts.yaml`.
    """

    name: str
    title: str
    read: str
    score: str
    tasks: dict[str, dict[str, Any]]
    folder: str = ""
    hub: str | None = None
    prompts: str | None = None
    chat_template: dict[str, str] = field(default_factory=dict)
    primer: str = ""
    answer_prefix: str = ""
    max_new_tokens: int = 100
    stop: tuple[str, ...] = ()
    paper: str | None = None
    choices: dict[str, int] = field(default_factory=dict)
    wording: dict[str, str] = field(default_factory=dict)
    file: Path = DIRECTORY

    def aspects(self, task: str) -> list[str]:
        """
        What of a task's answers is judged. A task that rows name by their "type" is judged as those that are declared.

        Raises:
            ValueError: if these are judged in different ways.
        """
        if task in self.tasks:
            return self.tasks[task]["judge"]
        first, *others = (declared["judge"] for declared in self.tasks.values())
        if any(other != first for other in others):
            raise ValueError(f"{self.file}: which aspects of task {task!r} are judged? Declare it with its `judge`")
        return first

    def chat(self, question: str, media: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages that ask a question, the answer's primer as the last of them if there is one."""
        text = self.wording.get("question", "{question}").replace("{question}", question)
        system = self.wording.get("system")
        return [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": [*media, {"type": "text", "text": text}]},
            *([{"role": "assistant", "content": self.primer}] if self.primer else []),
        ]

    def prompt_hash(self) -> str:
        """Of all that a model is told beside the sample's own question."""
        told = [self.wording, self.chat_template, self.primer, self.max_new_tokens, list(self.stop)]
        return digest(told)

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
                f"{sorted(NEEDED)} to read and {sorted(SCORES)} to score"
            )
        spec = importlib.util.spec_from_file_location(f"pllava_benchmark_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ValueError(f"{path} has no function {function!r}")
        return getattr(module, function)


def load_prompts(file: str | Path | None = None) -> dict[str, dict[str, str]]:
    """
    The wording of questions and judges; what `file` has comes in the place of ours.

    Raises:
        ValueError: if the file is no such YAML, or has a name that there is no prompt of.
    """
    prompts = _read_yaml(PROMPTS)
    others = _read_yaml(Path(file)) if file else {}
    for section, texts in others.items():
        unknown = {section} - prompts.keys() or texts.keys() - prompts[section].keys()
        if unknown:
            raise ValueError(f"{file}: there is no prompt {sorted(unknown)}; see {PROMPTS.name} for those there are")
        prompts[section] = {**prompts[section], **texts}
    return prompts


def load_benchmark(name: str, prompts: dict[str, dict[str, str]]) -> Benchmark:
    """
    Args:
        name: Of one of ours, or the path of a YAML file.

    Raises:
        ValueError: if there is no such benchmark, its file is no such YAML, has a key that no benchmark has, or lacks
            what a reader or a judge needs to know of a task.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else DIRECTORY / f"{name}.yaml"
    if not file.is_file():
        known = sorted([path.stem for path in DIRECTORY.glob("*.yaml")] + list(GROUPS))
        raise ValueError(f"{name}: no such benchmark; there are {', '.join(known)}, and YAML files of one's own")
    values = _read_yaml(file)
    allowed = {each.name for each in fields(Benchmark)} - {"name", "file"}
    required = {"title", "read", "score", "tasks"}
    if unknown := (values.keys() - allowed) | (required - values.keys()):
        raise ValueError(f"{file}: {sorted(unknown, key=str)} missing or unknown; needed are {sorted(required)}")
    _check_tasks(file, **{name: values[name] for name in ("tasks", "read", "score")})
    values["stop"] = tuple(values.get("stop", ()))
    wording = prompts.get(values.get("prompts"), {})
    return Benchmark(name=file.stem, file=file, **{"wording": wording, **values})


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is no mapping of names to values, but {type(values).__name__}")
    return values


def _check_tasks(file: Path, tasks: Any, read: str, score: str) -> None:
    """Whether each task says where its files are, and what of its answers is judged."""
    if not isinstance(tasks, dict) or not all(isinstance(declared, dict) for declared in tasks.values()):
        raise ValueError(
            f"{file}: `tasks` are mappings by name, as in `tasks: {{all: {{file: a.jsonl}}}}`; got {tasks}"
        )
    aspects = load_prompts()["judge"].keys() - {"system", "correction"}
    for task, declared in tasks.items():
        paths = NEEDED.get(read, set()) | (declared.keys() & {"media"})
        if wrong := sorted(name for name in paths if not isinstance(declared.get(name), str)):
            raise ValueError(f"{file}: `read: {read}` needs the path of {wrong} of task {task!r}; it has {declared}")
        judged = declared.get("judge")
        if score == "judge" and not (isinstance(judged, list) and judged and aspects.issuperset(judged)):
            raise ValueError(
                f"{file}: `score: judge` needs to know what of task {task!r} is judged, as in `judge: [answer]`, of "
                f"{sorted(aspects)}; it has {judged}"
            )


def load_benchmarks(names: str | Iterable[str], prompts: dict[str, dict[str, str]]) -> list[Benchmark]:
    """Several, as a list or separated by commas; "videoqa" stands for its four sets."""
    names = names.split(",") if isinstance(names, str) else names
    single = [each for name in names for each in GROUPS.get(name.strip(), [name.strip()])]
    return [load_benchmark(name if "." in name else name.replace("-", "_"), prompts) for name in single]
