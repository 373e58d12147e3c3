"""A cell's samples: from the dataset on the Hub that its lock names, or from other data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...checkpoint_files import download
from ..benchmarks.benchmark import Benchmark
from ..benchmarks.data_folder import unpack_archives
from ..benchmarks.readers import read_samples
from ..benchmarks.samples import Sample
from .lock import Lock


@dataclass(frozen=True)
class Data:
    """
    Where a benchmark's files are.

    Args:
        path: For [`read_samples`].
        name: For reports: without folders of this machine.
        revision: The commit of the lock's dataset; None for other data.
    """

    path: str
    name: str
    revision: str | None = None

    @classmethod
    def given(cls, path: str) -> "Data":
        """Describe data that replace the lock's: a folder, or a dataset on the Hub."""
        return cls(path, f"the folder {Path(path).resolve().name}" if Path(path).is_dir() else path)


def fetch_data(lock: Lock, benchmark: Benchmark) -> Data:
    """
    Download and unpack the archive with a cell's data, unless they are there.

    Raises:
        ValueError: if the Hub does not provide it.
    """
    try:
        snapshot = download(lock.data, [lock.data_file], lock.data_revision, "dataset")
    except ValueError as error:
        raise ValueError(
            f"{lock.cell} takes the data in {lock.data_file} of the dataset {lock.data}. Pass a folder that has them "
            f"with --data. {error}"
        ) from error
    unpack_archives(snapshot)
    folders = [path for path in sorted(snapshot.rglob(benchmark.folder)) if path.is_dir()]
    return Data(str(folders[0] if folders else snapshot), lock.data, snapshot.name)


def read_locked_samples(lock: Lock, benchmark: Benchmark, data: Data, limit: int | None = None) -> list[Sample]:
    """
    Return the samples of a cell: all of the benchmark, or those that the lock's seed draws from them as the released
    evaluation code does. With a limit, they are the first ones, see [`read_samples`].
    """
    samples = read_samples(benchmark, data.path, limit)
    if lock.draw_seed is None or limit is not None:
        return samples
    order = list(range(len(samples)))
    np.random.RandomState(lock.draw_seed).shuffle(order)
    return [samples[index] for index in sorted(order[: lock.samples])]
