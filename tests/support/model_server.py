"""`pllava serve` as a process of its own, for tests."""

import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai

COMMAND = [sys.executable, "-c", "from pllava_cli import app; app()", "serve"]
START_SECONDS = 90


@dataclass
class ModelServer:
    """A running server. `address` has no path: "http://127.0.0.1:43121"."""

    address: str
    process: subprocess.Popen
    log_file: Path
    http: httpx.Client = field(default_factory=partial(httpx.Client, timeout=60))

    def client(self, api_key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=api_key, max_retries=0, timeout=60, **options)

    def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        """Post a JSON value, or bytes as they are."""
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        sent = {"content": body} if isinstance(body, bytes) else {"json": body}
        return self.http.post(self.address + path, headers=headers, **sent, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(self.address + path, **options)

    def metric(self, name: str) -> float:
        """Return a metric's value, such as "pllava_num_requests_running"."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_for_metric(self, name: str, value: float, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}, not {value}, after {seconds} s"
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    @property
    def memory(self) -> int:
        """Resident bytes of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@dataclass
class World:
    """Clips of nano's world, each with one question about it. The files are in `folder`."""

    folder: Path
    clips: list[Path]
    questions: list[str]


def model_server(folder: Path, *arguments: str, **environment: str) -> AbstractContextManager[ModelServer]:
    """Run `pllava serve ARGUMENTS`, and stop it afterwards if it still runs. The log is written into the folder."""
    return running([*COMMAND, *arguments, "--port", "0"], folder, **environment)


@contextmanager
def running(command: list[str], folder: Path, **environment: str) -> Iterator[ModelServer]:
    """Run a program that serves a model, and stop it afterwards if it still runs."""
    log_file = folder / "server.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, **environment})
    try:
        end = time.monotonic() + START_SECONDS
        while not (found := re.search(r"is served at (http://\S+)/v1", log_file.read_text())):
            assert process.poll() is None and time.monotonic() < end, log_file.read_text()
            time.sleep(0.05)
        yield ModelServer(found[1], process, log_file)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()


def data_uri(content: bytes | Path, kind: str = "video/mp4") -> str:
    content = content.read_bytes() if isinstance(content, Path) else content
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def video_part(url: str, **bounds: float) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url, **bounds}}


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}
