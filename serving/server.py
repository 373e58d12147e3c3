"""Run the application under uvicorn, until a signal: then running answers end first."""

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType

import uvicorn
from transformers import PreTrainedModel

from ..media import MediaGate
from ..processing_pllava import PllavaProcessor
from .app import build_app
from .chat import ChatHandler
from .logs import set_up_logs
from .metrics import Metrics

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAX_DECODERS = 4  # requests whose media are fetched and decoded at the same time


class Server(uvicorn.Server):
    """
    Ends with exit code 0 after a signal, when running answers have ended; at once after a second one.

    Args:
        announcement: A line for the log, once clients can connect.
    """

    def __init__(self, config: uvicorn.Config, metrics: Metrics, announcement: str):
        super().__init__(config)
        self._metrics, self._announcement = metrics, announcement

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info(self._announcement)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("shutting down: requests in progress, which end first: %d", self._metrics.under_way)
        await super().shutdown(sockets)
        logger.info("shut down")


def bind(host: str, port: int) -> socket.socket:
    """
    Reserve an address, at which nobody can connect yet.

    Raises:
        OSError: if it is in use, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind, protocol)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
    except OSError as error:
        raise OSError(
            f"Cannot listen on {host}, port {port}: {error.strerror}; choose another --host or --port"
        ) from None
    return reserved


def is_local(address: socket.socket) -> bool:
    """Return whether only programs of this machine can connect to an address."""
    return ipaddress.ip_address(address.getsockname()[0]).is_loopback


def serve(
    name: str,
    model: PreTrainedModel,
    processor: PllavaProcessor,
    gate: MediaGate,
    address: socket.socket,
    max_requests: int,
    api_key: str | None = None,
) -> None:
    """
    Serve a model under a name until a signal comes.

    Args:
        gate: Reads the media of the requests.
        address: From [`bind`].
        max_requests, api_key: As for [`build_app`].
    """
    set_up_logs()
    metrics = Metrics()
    with ThreadPoolExecutor(MAX_DECODERS, "decode") as decoders:
        handler = ChatHandler(name, model, processor, gate, decoders, metrics)
        app = build_app(handler, metrics, max_requests, api_key, api_key is None and is_local(address))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, ws="none", server_header=False, proxy_headers=False
        )
        host, port = address.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        Server(config, metrics, f"{name} is served at {url}").run([address])
