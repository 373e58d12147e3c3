"""Decode files in a child process, which is killed if a file takes too long or too much memory."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

MAX_SECONDS, MAX_MEMORY = 20.0, 2048  # per file; MiB of the whole process


@dataclass
class Outcome:
    """
    Args:
        error: The message of the `VideoDecodeError`; `None` if the file was decoded.
        raised: Any other exception, or why the process was killed; `None` if neither happened.
        seconds: Duration.
        memory: Peak memory, in MiB above the memory in use before the file.
    """

    error: str | None
    raised: str | None
    seconds: float
    memory: int


def decode_files(paths: Iterable[Path], **options) -> dict[Path, Outcome]:
    """Process each file as a video and read it as an image. `options` are those of the video processor."""
    outcomes, waiting = {}, list(paths)
    while waiting:
        outcomes |= _decode_until_killed(waiting, options)
        waiting = [path for path in waiting if path not in outcomes]
    return outcomes


def _decode_until_killed(paths: list[Path], options: dict) -> dict[Path, Outcome]:
    child = subprocess.Popen(
        [sys.executable, __file__, json.dumps(options), *map(str, paths)], stdout=subprocess.PIPE, text=True
    )
    outcomes: dict[Path, Outcome] = {}
    began: list[float] = []
    killed: list[str] = []

    def watch() -> None:
        while child.poll() is None:
            seconds, memory = time.monotonic() - began[-1] if began else 0.0, _memory(child.pid, "VmRSS")
            if seconds > MAX_SECONDS or memory > MAX_MEMORY:
                killed.append(f"killed after {seconds:.1f} s at {memory} MiB")
                child.kill()
            time.sleep(0.02)

    watcher = Thread(target=watch)
    watcher.start()
    for line in child.stdout:
        if line != "ready\n":
            outcomes[paths[len(outcomes)]] = Outcome(**json.loads(line))
        began.append(time.monotonic())
    child.wait()
    watcher.join()
    if len(outcomes) < len(paths):
        outcomes[paths[len(outcomes)]] = Outcome(None, *(killed or [f"the process died: {child.returncode}"]), 0.0, 0)
    return outcomes


def _memory(process: int | str, name: str) -> int:
    """Return the memory of a process in MiB: "VmRSS" is the current, "VmHWM" the peak."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith(name)), 0)


def _main(options: str, *paths: str) -> None:
    import warnings

    from pllava import PllavaVideoProcessor
    from pllava.video_images_pllava import read_image
    from pllava.video_source_pllava import VideoDecodeError

    processor = PllavaVideoProcessor(**json.loads(options))
    warnings.simplefilter("ignore")
    print("ready", flush=True)
    for path in paths:
        before, began, error, raised = _memory("self", "VmRSS"), time.monotonic(), None, None
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        for read in (read_image, lambda file: processor(file, return_tensors="pt")):
            try:
                read(path)
            except VideoDecodeError as problem:
                error = str(problem)
            except Exception as problem:
                raised = repr(problem)
            else:
                error = None
        memory = _memory("self", "VmHWM") - before
        print(json.dumps(vars(Outcome(error, raised, time.monotonic() - began, memory))), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
