"""The locks of the paper's cells, in `locks.yaml`: what a run must use, so that its figures are those of the cell."""

from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..benchmarks.benchmark import read_yaml
from ..report.paper import PAPER

LOCKS = Path(__file__).with_name("locks.yaml")
# Entries that say where the others come from: no run can differ in them
NOT_COMPARED = ("cell", "benchmark", "paper_row", "data_file", "questions", "draw_seed")
NEAREST = 3  # cells that an error names


@dataclass(frozen=True)
class Lock:
    """
    All that the figures of a cell depend on. None stands for a value that nobody has recorded yet.

    Args:
        cell: TABLE/MODEL/BENCHMARK, such as "table2/7b/mvbench".
        benchmark: The name of the benchmark's declaration.
        paper_row: The model's row in `report/paper_results.json`.
        model, model_revision: The published checkpoint on the Hub, and its commit.
        alpha, dtype, num_frames, sampling, pooling: As in `run.json`; alpha is that of the checkpoint's LoRA.
        template_family: The key of the chat template in the benchmark's declaration.
        data, data_file, data_revision: The dataset on the Hub, the archive in it with the benchmark's files, and its
            commit.
        samples, questions: Their numbers. A sample may have two questions.
        prompt_hash, max_new_tokens: Those of the benchmark, with the wording of this project.
        sample_digest: The `digest_samples` of the samples.
        frame_digest: The `digest_frames` of the samples.
        draw_seed: The seed with which `samples` are drawn from all; None takes all.
        judge_temperature, judge_prompt_hash: Those of the judge, with the wording of this project; None if the
            benchmark needs none.
    """

    cell: str
    benchmark: str
    paper_row: str
    model: str
    model_revision: str | None
    alpha: float
    dtype: str
    num_frames: int
    sampling: str
    pooling: str
    template_family: str
    data: str
    data_file: str
    data_revision: str | None
    samples: int
    questions: int
    prompt_hash: str
    max_new_tokens: int
    sample_digest: str | None
    frame_digest: str | None
    draw_seed: int | None = None
    judge_temperature: float | None = None
    judge_prompt_hash: str | None = None

    @property
    def size(self) -> str:
        """The model's size, as in the address: "7b"."""
        return self.cell.split("/")[1]

    @property
    def judge(self) -> str | None:
        """The paper's judge, if the benchmark needs one."""
        return None if self.judge_prompt_hash is None else PAPER["judge"]

    def entries(self) -> dict[str, Any]:
        """Return the values that a run is compared with, by their names."""
        values = {name: value for name, value in asdict(self).items() if name not in NOT_COMPARED}
        if self.judge is None:
            return {name: value for name, value in values.items() if not name.startswith("judge")}
        return {**values, "judge": self.judge}


def load_locks(file: Path | None = None) -> dict[str, Lock]:
    """
    Return all locks by their cells.

    Args:
        file: A YAML file like `locks.yaml`, which is the default.

    Raises:
        ValueError: if the file is invalid, or a lock has unknown or lacks required entries.
    """
    file = file or LOCKS
    required = {each.name for each in fields(Lock) if each.default is MISSING} - {"cell"}
    known = {each.name for each in fields(Lock)} - {"cell"}
    locks = {}
    for cell, entries in read_yaml(file)["cells"].items():
        if wrong := (entries.keys() - known) | (required - entries.keys()):
            raise ValueError(f"{file}: the lock of {cell} has missing or unknown entries: {sorted(wrong)}")
        locks[cell] = Lock(cell, **entries)
    return locks


def find_lock(cell: str, file: Path | None = None) -> Lock:
    """
    Return the lock of one cell.

    Raises:
        ValueError: if there is no such cell; it names the nearest.
    """
    locks = load_locks(file)
    if cell not in locks:
        nearest = ", ".join(get_close_matches(cell, locks, n=NEAREST, cutoff=0))
        raise ValueError(f"{cell!r} is no cell of the paper's tables; the nearest are {nearest}; --list shows all")
    return locks[cell]
