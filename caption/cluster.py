"""
Captions by models on a Ray cluster. Ray Data runs the stages of a local run on the machines of the cluster: tasks
identify and decode clips, and an actor for each GPU captions them. This process, the driver, claims the clips and
writes the captions, as in a local run: whatever ends, a later run continues from the store.

Ray Data takes a list, and clips are found and claimed one by one. So they go in rounds, each twice as long as the one
before: the first captions come soon, and the models are loaded a few times. While the cluster works on a round, the
driver collects the next one.
"""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..extras import needs_extra
from ..media.sandbox import start_fork_server
from ..workers import DECODE_TIMEOUT, ordered_map
from .captioners.decoding import Decode
from .captioners.local import LocalCaptioner
from .clips import Clip, Failed, Identify, Row
from .report import Report
from .run import CaptionSource, Job, Numbered, batches, batches_of_pieces

if TYPE_CHECKING:
    from ray.data import Dataset

LOCAL = "local"  # the address of a cluster that is started for this run, on this machine
FIRST_ROUND, LONGEST_ROUND = 64, 16384  # batches
CONNECT_SECONDS = 10
MAX_ROUND_BYTES = 4 << 30  # of clips that are not files, but in the rows of a dataset: they pass through the driver

PackedBatch = dict[str, bytes]  # a row of Ray Data


@dataclass(frozen=True)
class ClusterModel(CaptionSource):
    """
    Models on the machines of a Ray cluster, which has the files under the same paths.

    Args:
        load: Loads a model; called on the cluster, where what it refers to can be imported.
        decode: Decodes clips.
        address: Of a cluster that this machine belongs to, "auto" for the one that runs here, or "local" to start one.
        models: Their number; None: as many as the cluster has GPUs, or one. Each has one GPU if there are any.

    Raises:
        ModuleNotFoundError: without the extra `ray`.
        ValueError: for an address of the Ray Client.
    """

    load: Callable[[], LocalCaptioner]
    decode: Decode
    address: str
    models: int | None = None

    def __post_init__(self):
        if "://" in self.address:
            raise ValueError(
                f"{self.address}: Ray Data does not run over the Ray Client. Run this command on a machine of the "
                "cluster, with the address auto; `ray job submit` starts it there"
            )
        with needs_extra("ray"):
            import ray.data  # noqa: F401 (an error before any work)

    def identify(self, clips: Iterator[Clip | Failed], job: Job) -> Iterator[list[Clip] | Failed]:
        # The processes of the cluster have working folders of their own
        absolute = (replace(clip, video=clip.path) if isinstance(clip, Clip) and clip.path else clip for clip in clips)
        options = {"function": Identify(job.split), "seconds": job.identify_timeout}

        def stages(dataset: "Dataset") -> "Dataset":
            dataset.context.execution_options.preserve_order = True
            return dataset.map(_map_safely, fn_kwargs=options, num_cpus=1)

        for found in _stream(batches(absolute, job.piece), stages):
            yield from found

    def captions(self, clips: Iterator[Numbered], job: Job, report: Report) -> Iterator[list[Row]]:
        with _connected(self.address):
            models, gpus = self._count_models()
            report.processes, report.workers = models, 0  # Ray decides how many decode

            def stages(dataset: "Dataset") -> "Dataset":
                from ray.data import ActorPoolStrategy

                decoded = dataset.map(_decode, fn_args=[self.decode], num_cpus=1)
                # A model takes no CPU from those that decode. With equal shares, Ray Data would fuse both stages
                actors = ActorPoolStrategy(size=models)
                return decoded.map(
                    _Captioner, fn_constructor_args=[self.load], compute=actors, num_cpus=0, num_gpus=gpus
                )

            yield from _stream(batches_of_pieces(clips, job.piece), stages)

    def _count_models(self) -> tuple[int, int]:
        """Return the number of models, and the GPUs of each: 1 or 0."""
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        if self.models and 0 < gpus < self.models:
            raise ValueError(f"The cluster has {gpus} GPUs, too few for {self.models} models")
        return self.models or gpus or 1, min(gpus, 1)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """
    Connect to a cluster, or start one that ends with the block. Ray's own messages are not shown.

    Raises:
        ConnectionError: if there is no cluster.
        RuntimeError: if a stage fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    from ray.exceptions import RayError, RayTaskError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends the run is raised as well
    options = {"include_dashboard": False} if address == LOCAL else {}
    _check_port(address)
    ray.init(address, logging_level=logging.CRITICAL, log_to_driver=False, **options)
    try:
        yield
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise RuntimeError(f"On the cluster: {cause}") from error
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """Raise a `ConnectionError` if nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    try:
        if colon:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"There is no Ray cluster at {address}: {error}") from error


# --- rounds ----------------------------------------------------------------------------------------------------------


def _stream(items: Iterable[list[Any]], stages: Callable[["Dataset"], "Dataset"]) -> Iterator[list[Any]]:
    """
    Yield the results of batches.

    Args:
        stages: Adds to a dataset of packed batches the operators that turn each batch into its result.
    """
    from ray.data import from_items

    items, following = iter(items), _Round()
    following.extend(items, FIRST_ROUND)
    while following.rows:
        current, following = following, _Round()
        dataset = from_items(current.rows, override_num_blocks=len(current.rows))  # a task for each batch
        dataset.context.enable_progress_bars = False
        dataset.context.raise_original_map_exception = True
        for row in stages(dataset).iter_rows():
            yield _unpack(row)
            following.extend(items, 2)


class _Round:
    """Packed batches, up to the limits of a round."""

    def __init__(self):
        self.rows: list[PackedBatch] = []
        self._bytes = 0

    def extend(self, items: Iterator[list[Any]], count: int) -> None:
        if len(self.rows) < LONGEST_ROUND and self._bytes < MAX_ROUND_BYTES:
            new = [_pack(batch) for batch in islice(items, count)]
            self.rows += new
            self._bytes += sum(len(row["batch"]) for row in new)


def _pack(batch: list[Any]) -> PackedBatch:
    return {"batch": pickle.dumps(batch)}  # between processes of this program; Ray would pickle it as well


def _unpack(row: PackedBatch) -> list[Any]:
    return pickle.loads(row["batch"])


# --- on the cluster --------------------------------------------------------------------------------------------------


def _map_safely(row: PackedBatch, function: Identify | Decode, seconds: float) -> PackedBatch:
    """Call a function with each clip of a batch, in a process of its own: a clip that crashes it fails alone."""
    clips = _unpack(row)
    return _pack(list(ordered_map(function, clips, 1, len(clips), seconds, function.lost)))


def _decode(row: PackedBatch, decode: Decode) -> PackedBatch:
    if decode.gate:
        start_fork_server()  # the gate was made in another process
    return _map_safely(row, decode, DECODE_TIMEOUT)


class _Captioner:
    """An actor with a model."""

    def __init__(self, load: Callable[[], LocalCaptioner]):
        self._captioner = load()

    def __call__(self, row: PackedBatch) -> PackedBatch:
        return _pack(self._captioner(_unpack(row)))
