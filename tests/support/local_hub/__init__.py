"""
A local stand-in for the Hugging Face Hub, for its own, unmodified clients: models, datasets and Spaces with revisions,
large files, pull requests, collections, rights, checks of metadata, and misbehaviour on command. Clients need
`HF_ENDPOINT`, and `HF_HUB_DISABLE_XET=1` to upload large files: there is no Xet server.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .hub import LocalHub
from .rights import Token
from .server import Handler, Server

__all__ = ["LocalHub", "Token", "local_hub"]


@contextmanager
def local_hub(folder: Path, port: int = 0, **options: object) -> Iterator[LocalHub]:
    """
    Serve the repositories of `folder`: models in `NAMESPACE/NAME`, datasets in `datasets/NAMESPACE/NAME`, Spaces in
    `spaces/NAMESPACE/NAME`. Yields the value for `HF_ENDPOINT`; `options` are those of `LocalHub`.
    """
    server = Server(("127.0.0.1", port), Handler)
    server.hub = LocalHub(f"http://127.0.0.1:{server.server_address[1]}", folder, **options)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
