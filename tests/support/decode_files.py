"""Decodes files in a process of its own, which is ended where one takes too long or too much memory."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

MAX_SECONDS, MAX_MEMORY = 20.0, 2048


@dataclass
class Outcome:
    """
    Args:
        error: The message of the one error; `None` if the file was decoded.
        raised: What else was raised, or why the process was ended; `None` if nothing was.
        seconds: What it took.
        memory: What it took of memory at most beside what was in use before, in MiB; what was in use counts to the
            limit.
    """

    error: str | None
    raised: str | None
    seconds: float
    memory: int


def decode_files(paths: Iterable[Path], **options) -> dict[Path, Outcome]:
    """Prepares the frames of each file as for the model, and reads it as an image; `options` are the processor's."""
    found, waiting = {}, list(paths)
    while waiting:
        found |= _decode_until_ended(waiting, options)
        waiting = [path for path in waiting if path not in found]
    return found


def _decode_until_ended(paths: list[Path], options: dict) -> dict[Path, Outcome]:
    child = subprocess.Popen(
        [sys.executable, __file__, json.dumps(options), *map(str, paths)], stdout=subprocess.PIPE, text=True
    )
    found: dict[Path, Outcome] = {}
    began: list[float] = []
    ended: list[str] = []

    def watch() -> None:
        while child.poll() is None:
            seconds, memory = time.monotonic() - began[-1] if began else 0.0, _memory(child.pid, "VmRSS")
            if seconds > MAX_SECONDS or memory > MAX_MEMORY:
                ended.append(f"ended after {seconds:.1f} s at {memory} MiB")
                child.kill()
            time.sleep(0.02)

    watcher = Thread(target=watch)
    watcher.start()
    for line in child.stdout:
        if line != "ready\n":
            found[paths[len(found)]] = Outcome(**json.loads(line))
        began.append(time.monotonic())
    child.wait()
    watcher.join()
    if len(found) < len(paths):
        found[paths[len(found)]] = Outcome(None, *(ended or [f"the process died: {child.returncode}"]), 0.0, 0)
    return found


def _memory(process: int | str, name: str) -> int:
    """In MiB: "VmRSS", what it has in use, or "VmHWM", the most that it had."""
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
        Path("/proc/self/clear_refs").write_text("5")  # counts the peak anew
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
