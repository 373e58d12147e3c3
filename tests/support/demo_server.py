"""
A server of the chat for tests: as `pllava demo`, but a token may take its time, so that a test can watch answers grow.

    python tests/support/demo_server.py FOLDER PORT [SECONDS_A_TOKEN] [ADAPTER]
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from ports import free_port

START_SECONDS = 120


@contextmanager
def run_server(command: list[str], port: str, log: Path, **environment: str) -> Iterator[str]:
    """Run a server until the end of the context, and return its address once it answers. Its output goes to `log`."""
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def demo_server(folder: Path, seconds: float = 0, adapter: Path | None = None, **links: Path) -> Iterator[str]:
    """Run this file as a server whose uploads and shared conversations are below `folder`."""
    port = free_port()
    arguments = [str(folder), port, str(seconds), *([str(adapter)] if adapter else [])]
    environment = {"GRADIO_TEMP_DIR": str(folder / "uploads"), "GRADIO_ANALYTICS_ENABLED": "False"}
    with run_server([sys.executable, __file__, *arguments], port, folder / "server.log", **environment) as address:
        yield address


def _answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/config", timeout=5):
            return True
    except (URLError, OSError):
        return False


def main(folder: str, port: str, seconds: str, *adapter: str) -> None:
    import pllava
    from pllava.demo.page import build_demo, launch_options
    from pllava.loading import load_processor
    from pllava.media import MediaGate

    model = pllava.load_model(pllava.NANO, *adapter)
    model.get_output_embeddings().register_forward_hook(lambda *_: time.sleep(float(seconds)))
    links = MediaGate(allowed_local_media_path=[Path(folder, "links")])
    page = build_demo(model, load_processor(model), "nano", Path(folder, "shared"), links=links)
    page.launch(server_port=int(port), quiet=True, **launch_options())


if __name__ == "__main__":
    main(*sys.argv[1:])
