"""A server of nano, a web server of its clips, and nano's own answers, which the server's must equal."""

import functools
import http.server
import threading
from collections.abc import Callable, Iterator

import pytest
from model_server import ModelServer, World, model_server
from transformers import pipeline

import pllava
from pllava.nano.world.rendering import read_questions, render

CLIPS = 16


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    render(folder, CLIPS, seed=77)
    captions = {row["video"]: row["question"] for row in read_questions(folder) if row["type"] == "caption"}
    return World(folder, [folder / name for name in captions], list(captions.values()))


class Web(str):
    """The host and port of a web server, at which the world's folder is. It replies while `opened` is set."""

    opened = threading.Event()


@pytest.fixture(scope="session")
def web(world: World) -> Iterator[Web]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            Web.opened.wait(30)
            super().do_GET()

        def log_message(self, *args) -> None: ...

    handler = functools.partial(Handler, directory=world.folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    Web.opened.set()
    yield Web(f"127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def nano_server(world: World, web: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server of nano that reads clips of the world's folder, and of the web server."""
    allowed = ["--allowed-local-media-path", str(world.folder), "--allowed-media-domains", web]
    with model_server(tmp_path_factory.mktemp("nano_server"), "nano", *allowed) as server:
        yield server


@pytest.fixture(scope="session")
def nano_says() -> Callable[..., str]:
    """What nano itself says to a chat, through the pipeline: greedily."""
    pipe = pipeline("video-text-to-text", model=pllava.NANO, trust_remote_code=True)

    def answer(messages: list[dict], **processor_kwargs) -> str:
        settings = {"generate_kwargs": {"do_sample": False}, "processor_kwargs": processor_kwargs}
        return pipe(messages, max_new_tokens=256, **settings)[0]["generated_text"][-1]["content"]

    return answer
