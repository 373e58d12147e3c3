"""Which hosts files may be fetched from, and fetching them."""

import tempfile
from collections.abc import Iterable
from typing import BinaryIO
from urllib.parse import urlsplit

from huggingface_hub.utils import httpx

from ..video_download_pllava import DownloadError, download, is_public, resolve_host
from .limits import MediaLimits, MediaRefused
from .places import check_bytes

ANY_HOST = "*"


class AllowedHosts:
    """
    Hosts from which files may be fetched: names, "*" for any, and names with a port, whose addresses may be private.

    Raises:
        ValueError: if an entry is something else.
    """

    def __init__(self, entries: Iterable[str]):
        self.hosts: set[str] = set()
        self.with_ports: set[tuple[str, int]] = set()
        for entry in entries:
            host, port = (ANY_HOST, None) if entry == ANY_HOST else _parse_entry(entry)
            if port is None:
                self.hosts.add(host)
            else:
                self.with_ports.add((host, port))

    async def resolve(self, host: str, port: int) -> list[str]:
        """
        Return the addresses of a host.

        Raises:
            PermissionError: if it is not allowed, or one of them is not public.
        """
        own = (host, port) in self.with_ports
        if not own and not {host, ANY_HOST} & self.hosts:
            raise PermissionError(f"files are not fetched from {host}")
        addresses = await resolve_host(host, port)
        if not own and not all(map(is_public, addresses)):
            raise PermissionError(f"the address of {host} is not public")
        return addresses


def _parse_entry(entry: str) -> tuple[str, int | None]:
    """Return a host, as `resolve` gets it, and the port."""
    try:
        parts = urlsplit(f"//{entry}")
        host, port = httpx.URL(f"http://{entry}").raw_host.decode("ascii"), parts.port
        if parts.netloc != entry or not host or set(entry + host) & set("@*%"):
            raise ValueError(entry)
    except (ValueError, httpx.InvalidURL):
        raise ValueError(
            f'{entry!r} does not name a host: write "cdn.example.org", "127.0.0.1:8001", or "*" for all public hosts'
        ) from None
    return host.rstrip("."), port


def fetch(url: str, name: str, hosts: AllowedHosts, limits: MediaLimits) -> BinaryIO:
    """
    Download a file, without proxies that the environment names.

    Raises:
        MediaRefused: if its host, or one that it redirects to, is not allowed, or the file exceeds a limit.
    """
    file = tempfile.TemporaryFile()
    try:
        download(url, file, limits.max_bytes, limits.fetch_seconds, hosts.resolve)
    except DownloadError as error:
        file.close()
        raise MediaRefused(f"Cannot fetch {name}: {error}. Check the address, or upload the file.") from None
    check_bytes(name, file.tell(), limits)
    file.flush()
    return file
