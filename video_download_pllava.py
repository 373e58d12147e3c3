"""Download a file over http(s) within limits of bytes and seconds. No redirect leads from a public server inwards."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO
from urllib.request import getproxies

from huggingface_hub.utils import httpx

# Called as `resolve(host, port)` for the address and for each redirect; returns IP addresses to connect to
Resolver = Callable[[str, int], Awaitable[list[str]]]

MAX_REDIRECTS = 5
SILENCE_TIMEOUT = 60  # seconds for which a server may send nothing
# Networks of IPv6 addresses that hold an IPv4 address, and the bit at which it begins: mapped, NAT64, 6to4
EMBEDDED_IPV4 = {"::ffff:0:0/96": 96, "64:ff9b::/96": 96, "2002::/16": 16}
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


class DownloadError(ValueError):
    """A file cannot be downloaded. The message is the reason alone, without the address and its secrets."""


def download(url: str, file: BinaryIO, max_bytes: int, max_seconds: float, resolve: Resolver | None = None) -> None:
    """Write what is at `url` to `file`.

    Args:
        url: An http(s) address. A compressed answer is unpacked.
        file: Where to write.
        max_bytes: Size limit, counted while the file arrives and is unpacked.
        max_seconds: Time limit for everything, however slowly the server sends.
        resolve: Returns the addresses of a host, one of which is connected to; raises `PermissionError` with the
            reason to refuse it. By default, any host may be named, but from a public one no redirect leads to an
            address that is not; and the proxies that the environment names are used.

    Raises:
        DownloadError: if that is not possible within the limits.
    """
    trust_env = resolve is None
    fetch = _fetch(url, file, max_bytes, resolve or _resolver_that_stays_public(), trust_env)
    # asyncio cancels the whole download at the time limit, whatever the server does. It needs a thread of its own:
    # the calling thread may run an event loop already, and a look-up of a name cannot be cancelled.
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(asyncio.run, asyncio.wait_for(fetch, max_seconds)).result(max_seconds + 1)
    except httpx.HTTPStatusError as problem:  # its own message contains the URL with its secrets
        raise DownloadError(f"{problem.response.status_code} {problem.response.reason_phrase}") from None
    except httpx.InvalidURL:  # likewise
        raise DownloadError("it is not a valid address") from None
    except TimeoutError:
        raise DownloadError(f"it takes longer than {max_seconds:g} s") from None
    except Exception as problem:  # httpx does not wrap every exception of ssl and other libraries
        raise DownloadError(str(problem) or type(problem).__name__) from problem
    finally:
        pool.shutdown(wait=False)


async def _fetch(url: str, file: BinaryIO, max_bytes: int, resolve: Resolver, trust_env: bool) -> None:
    # A proxy connects by itself. It resolves names, too, some of which may be unknown here.
    proxied = trust_env and bool({"http", "https", "all"} & getproxies().keys())
    transport = None if proxied else _CheckedTransport(resolve)
    async with httpx.AsyncClient(transport=transport, trust_env=trust_env, timeout=SILENCE_TIMEOUT) as client:
        request = client.build_request("GET", url, headers={"Accept-Encoding": "identity"})
        if not request.url.host:
            raise httpx.InvalidURL("no host")
        for _ in range(MAX_REDIRECTS + 1):
            if request.url.scheme not in ("http", "https"):
                raise ValueError(f"it redirects to an address that begins with {request.url.scheme}:")
            if proxied:
                with suppress(socket.gaierror):
                    await resolve(*_host_and_port(request.url))
            # Not httpx's own following of redirects, which reads the body of each, however long it is
            response = await client.send(request, stream=True)
            try:
                if response.next_request is None:
                    return await _save(response, file, max_bytes)
                request = response.next_request
            finally:
                await response.aclose()
    raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")


async def _save(response: httpx.Response, file: BinaryIO, max_bytes: int) -> None:
    response.raise_for_status()
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding not in ("identity", "gzip", "deflate"):  # nested or other encodings could expand without limit
        raise ValueError(f"it is sent compressed ({encoding})")
    size, too_large = 0, ValueError(f"it has more than {max_bytes:,} bytes")
    if int(response.headers.get("Content-Length", 0)) > max_bytes:
        raise too_large
    async for chunk in response.aiter_bytes():  # decompressed
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        file.write(chunk)


class _CheckedTransport(httpx.AsyncHTTPTransport):
    """Connects to an address that `resolve` returned, so that no second look-up can lead elsewhere."""

    def __init__(self, resolve: Resolver):
        # Each request connects anew: hosts that share an address would share a connection
        super().__init__(limits=httpx.Limits(max_keepalive_connections=0))
        self.resolve = resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, port = _host_and_port(request.url)
        extensions = {**request.extensions, "sni_hostname": host}  # the name to which the certificate must belong
        problem = None
        for address in await self.resolve(host, port):
            url = request.url.copy_with(host=address)
            # The headers include "Host", which still has the name
            attempt = httpx.Request(request.method, url, headers=request.headers, extensions=extensions)
            try:
                return await super().handle_async_request(attempt)
            except httpx.ConnectError as error:
                problem = error
        raise problem or OSError("its host has no address")


def _host_and_port(url: httpx.URL) -> tuple[str, int]:
    return url.raw_host.decode("ascii").rstrip("."), url.port or (443 if url.scheme == "https" else 80)


async def resolve_host(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host. Every way to write an IPv4 address, such as 0x7f.1, is understood here."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(address[0] for *_, address in found))


def is_public(address: str) -> bool:
    """
    Return whether an IP address belongs to the internet: not to this machine, a private network, a link, a group, or a
    reserved range, nor to one of these through an IPv4 address within it.
    """
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        for network, start in EMBEDDED_IPV4.items():
            if ip in ipaddress.ip_network(network):
                return is_public(str(ipaddress.IPv4Address(int(ip) >> 96 - start & 0xFFFFFFFF)))
        if ip not in GLOBAL_UNICAST or ip.teredo:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _resolver_that_stays_public() -> Resolver:
    was_public = False

    async def resolve(host: str, port: int) -> list[str]:
        nonlocal was_public
        addresses = await resolve_host(host, port)
        public = all(map(is_public, addresses))
        if was_public and not public:
            raise PermissionError(f"it redirects to {host}, whose address is not public")
        was_public |= public
        return addresses

    return resolve
