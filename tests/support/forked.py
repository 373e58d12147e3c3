"""
Processes that start quickly: they are forked from a server that has imported the packages, once for all tests of a
pytest worker. The arguments are Python's (`-m module`, `-c code`, a file), or those of the command `pllava`.
"""

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

from ports import free_port

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pllava.eval", "pllava.data.publishing", "pllava.convert"])


def start(*arguments: object, output: Path | str = os.devnull, cwd: object = ".", **environment: str) -> BaseProcess:
    """Start a process whose standard output and error go to `output` and `output` + ".err"."""
    process = _context.Process(target=_main, args=([*map(str, arguments)], str(output), str(cwd), environment))
    process.start()
    return process


def wait(process: BaseProcess, timeout: float = 240) -> int:
    """Return the process' exit code; kill it and raise an error after `timeout` seconds."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise subprocess.TimeoutExpired(process.name, timeout)
    return process.exitcode


def run(*arguments: object, **options: str) -> subprocess.CompletedProcess:
    """Run a process like `subprocess.run` with captured text."""
    with tempfile.TemporaryDirectory() as folder:
        return run_group([{}], *arguments, folder=Path(folder), **options)[0]


def ranks(processes: int) -> list[dict[str, str]]:
    """Return the environment variables of each process of a distributed job on the CPU."""
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [{**group, "RANK": str(n), "LOCAL_RANK": str(n), "ACCELERATE_USE_CPU": "true"} for n in range(processes)]


def run_group(
    environments: list[dict[str, str]], *arguments: object, folder: Path, **options: str
) -> list[subprocess.CompletedProcess]:
    """Run one process per environment at the same time; their outputs are written to `folder`."""
    outputs = [folder / f"{number}.out" for number in range(len(environments))]
    started = [
        start(*arguments, output=output, **options, **environment)
        for output, environment in zip(outputs, environments, strict=True)
    ]
    return [
        subprocess.CompletedProcess(arguments, wait(process), output.read_text(), Path(f"{output}.err").read_text())
        for process, output in zip(started, outputs, strict=True)
    ]


def _main(arguments: list[str], output: str, cwd: str, environment: dict[str, str]) -> None:
    for number, name in ((1, output), (2, output if output == os.devnull else output + ".err")):
        with open(name, "ab") as file:
            os.dup2(file.fileno(), number)
    multiprocessing.set_start_method(None, force=True)  # else a server for workers would import all anew
    os.chdir(cwd)
    os.environ.update(environment)
    for name in ("huggingface_hub.constants", "datasets.config"):  # were set from the server's environment
        importlib.reload(sys.modules[name])
    first, *rest = arguments
    if first == "pllava":
        from pllava_cli import app

        sys.argv = arguments
        app()
    elif first.endswith(".py"):
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
