"""Fetching: which hosts, which addresses, redirects, changing answers of name servers, limits, certificates."""

import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hostile_media import Server, content, drip, drip_headers, endless, gzip_bomb, redirect

import pllava.video_download_pllava as downloads
from pllava.media import MediaGate, MediaLimits, MediaRefused
from pllava.video_decoding_pllava import load_frames
from pllava.video_download_pllava import is_public
from pllava.video_source_pllava import VideoDecodeError

PRIVATE = """
127.0.0.1 127.1.2.3 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 0.1.2.3 224.0.0.1
239.255.255.255 240.0.0.1 255.255.255.255 192.0.0.1 192.0.2.1 198.18.0.1 :: ::1 fe80::1 fe80::1%lo fc00::1 fd00::1
fec0::1 ff02::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 ::8.8.8.8 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::808:808
2002:7f00:1:: 2002:a00:1:: 2001:0:1::1 2001:db8::1 100::1
""".split()
PUBLIC = "8.8.8.8 93.184.216.34 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::".split()
# Ways to write an address of this machine, or of its network
LOOPBACKS = """
127.0.0.1 localhost localhost. LOCALHOST 2130706433 017700000001 0x7f000001 0x7f.1 127.1 127.0.1 0 0.0.0.0 [::1] [::]
[::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:0:0:1] [64:ff9b::7f00:1] user:password@127.0.0.1 example.org@127.0.0.1
example.org:80@127.0.0.1 127。0。0。1 ①②⑦.⓪.⓪.① 127.0.0.1%2f@127.0.0.1 127.0.0.1:80#@example.org 127.0.0.1?@example.org
%31%32%37.0.0.1 [::1%25lo] 169.254.169.254 10.0.0.1 192.168.0.1 100.64.0.1
""".split()
LIMITS = MediaLimits(max_bytes=1_000_000, fetch_seconds=0.5)


@pytest.fixture
def names(monkeypatch) -> dict[str, list[str]]:
    """What the name server answers, in turn: the last answer stays. The look-ups are in `asked`."""
    answers: dict[str, list[str]] = {"asked": []}
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, *args, **options):
        if host in answers:
            answers["asked"].append(host)
            given = answers[host]
            host = given.pop(0) if len(given) > 1 else given[0]
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


@pytest.fixture
def one_public_address(monkeypatch) -> None:
    """127.0.0.1 counts as an address of the internet, and 127.0.0.2 as one of a private network."""
    for module in ("pllava.video_download_pllava", "pllava.media.hosts"):
        monkeypatch.setattr(f"{module}.is_public", lambda address: address == "127.0.0.1")


def fetch(gate: MediaGate, url: str) -> bytes:
    name, file = gate._open(url)
    with file:
        file.seek(0)
        return file.read()


def refusal(gate: MediaGate, url: str) -> str:
    with pytest.raises(MediaRefused, match="^Cannot (fetch|read) ") as caught:
        gate.read(url)
    assert "\n" not in str(caught.value) and "password" not in str(caught.value)
    return str(caught.value)


def test_public_addresses_are_told_from_others():
    assert [address for address in PRIVATE if is_public(address)] == []
    assert [address for address in PUBLIC if not is_public(address)] == []


@pytest.mark.parametrize("host", LOOPBACKS)
def test_no_way_to_write_a_private_address_is_fetched(host):
    with Server(clip=content(b"secret")) as server:
        place = host if set("#?") & set(host) else f"{host}:{server.server_port}"
        for gate in (MediaGate(["*"], limits=LIMITS), MediaGate(["example.org"], limits=LIMITS)):
            refusal(gate, f"http://{place}/clip")
        assert not server.requests


def test_hosts_must_be_listed(names):
    with Server(clip=content(b"clip")) as server:
        names["cdn.example.org"] = ["127.0.0.1"]
        for allowed in ([], ["example.org"], ["127.0.0.1:1"], ["cdn.example.org"], ["*"]):
            text = refusal(MediaGate(allowed, limits=LIMITS), f"http://cdn.example.org:{server.server_port}/clip")
            listed = allowed in (["cdn.example.org"], ["*"])
            assert ("is not public" if listed else "files are not fetched from cdn.example.org") in text
        assert not server.requests and len(names["asked"]) == 2  # no name server is asked for other hosts
        own = f"CDN.example.org.:{server.server_port}"
        for host in ("cdn.example.org", "cdn.example.org.", "CDN.EXAMPLE.ORG"):
            assert fetch(MediaGate([own]), f"http://{host}:{server.server_port}/clip") == b"clip"
        assert server.requests[0][0] == f"cdn.example.org:{server.server_port}"  # "Host" has the name


@pytest.mark.parametrize(
    "entry", ["https://x.org", "x.org/a", "*.x.org", "", "u@x.org", "x.org:99999", "x org", "[::1"]
)
def test_entry_that_is_no_host_is_an_error(entry):
    with pytest.raises(ValueError, match="does not name a host: write"):
        MediaGate([entry])


def test_redirects_are_checked_hop_by_hop(names):
    with Server(clip=content(b"secret")) as inside, Server(clip=content(b"clip")) as server:
        names["private.example.org"] = ["127.0.0.1"]
        for number, target in enumerate(
            [
                f"http://{inside.place}/clip",
                f"http://private.example.org:{inside.server_port}/clip",
                f"//{inside.place}/clip",
                f"http://[::ffff:127.0.0.1]:{inside.server_port}/clip",
                "file:///etc/passwd",
                "ftp://127.0.0.1/clip",
                "gopher://127.0.0.1/clip",
                "data:video/mp4;base64,AAAA",
                "http://",
                "http://[",
            ]
        ):
            server.answers |= {"first": redirect("/second"), "second": redirect(target)}
            text = refusal(MediaGate(["*", server.place]), f"http://{server.place}/first")
            assert "not public" in text or number > 3
        assert not inside.requests and len(server.requests) == 20
        server.answers |= {"loop": redirect("/loop"), "relative": redirect("clip")}
        assert "redirects more than 5 times" in refusal(MediaGate([server.place]), f"http://{server.place}/loop")
        assert fetch(MediaGate([server.place]), f"http://{server.place}/relative") == b"clip"


def test_second_answer_of_a_name_server_is_not_used(names, one_public_address):
    """DNS rebinding: a public address for the check, a private one for the connection."""
    with Server("127.0.0.1", clip=content(b"clip")) as public:
        with Server("127.0.0.2", public.server_port, clip=content(b"secret")) as private:
            url = f"http://rebind.example.org:{public.server_port}/clip"
            names["rebind.example.org"] = ["127.0.0.1", "127.0.0.2"]
            assert fetch(MediaGate(["*"]), url) == b"clip"
            assert names["asked"] == ["rebind.example.org"]
            assert "is not public" in refusal(MediaGate(["*"]), url)  # the next look-up
            assert not private.requests and len(public.requests) == 1


def test_all_addresses_of_a_host_must_be_public(monkeypatch, one_public_address):
    look_up = socket.getaddrinfo

    def both(host: str, *args, **options):
        hosts = ["127.0.0.1", "127.0.0.2"] if host == "two.example.org" else [host]
        return [found for each in hosts for found in look_up(each, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert "is not public" in refusal(MediaGate(["*"]), "http://two.example.org:1/clip")


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    with Server(clip=content(b"clip")) as server, Server() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy.place}")
        assert fetch(MediaGate([server.place]), f"http://{server.place}/clip") == b"clip"
        assert not proxy.requests


def silent_name_server(host: str, *args, **options):
    time.sleep(3)
    raise socket.gaierror


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (endless(), "more than 1,000,000 bytes"),
        (endless(302, Location="/clip"), "redirects more than 5 times"),  # the body of a redirect is not read
        (endless(404), "404 Not Found"),
        (content(b"", Content_Length="1000000000000"), "more than 1,000,000 bytes"),
        (content(b"1" * 100, Content_Length="200"), "peer closed connection"),
        (gzip_bomb, "more than 1,000,000 bytes"),
        (content(b"", Content_Encoding="br"), "compressed (br)"),
        (content(b"", Content_Encoding="gzip, gzip"), "compressed (gzip, gzip)"),
        (content(b"not gzip" * 100, Content_Encoding="gzip"), "incorrect header check"),
        (content(b""), "is empty"),
    ],
)
def test_downloads_have_limits(answer, problem):
    with Server(clip=answer) as server:
        # A busy machine may take seconds to begin; what is refused for its size never reaches the deadline
        limits = replace(LIMITS, fetch_seconds=30)
        text = refusal(
            MediaGate([server.place], limits=limits), f"http://user:password@{server.place}/clip?key=password"
        )
        assert problem in text and f"http://{server.place}/clip?..." in text


@pytest.mark.parametrize("answer", [drip, drip_headers, lambda handler: time.sleep(3)])
def test_downloads_have_a_deadline(answer):
    with Server(clip=answer) as server:
        began = time.monotonic()
        text = refusal(MediaGate([server.place], limits=LIMITS), f"http://{server.place}/clip?key=password")
        assert "longer than 0.5 s" in text and f"http://{server.place}/clip?..." in text
        assert time.monotonic() - began < 2.5


def test_a_name_server_that_is_silent_does_not_hold_the_reader(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", silent_name_server)
    began = time.monotonic()
    assert "longer than 0.5 s" in refusal(MediaGate(["*"], limits=LIMITS), "http://example.org/clip")
    assert time.monotonic() - began < 2.5


def test_certificate_belongs_to_the_name_and_not_to_the_address(names, tmp_path, monkeypatch):
    ssl = pytest.importorskip("ssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout {key} -out {certificate}"
    command += " -addext subjectAltName=DNS:cdn.example.org"
    subprocess.run(command.split(), check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    asked: list[str] = []
    context.sni_callback = lambda connection, name, _: asked.append(name)
    with Server(clip=content(b"clip")) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        names |= {"cdn.example.org": ["127.0.0.1"], "other.example.org": ["127.0.0.1"]}
        gate = MediaGate([f"{name}.example.org:{server.server_port}" for name in ("cdn", "other")])
        assert fetch(gate, f"https://cdn.example.org:{server.server_port}/clip") == b"clip"
        assert asked == ["cdn.example.org"]
        assert "certificate verify failed" in refusal(gate, f"https://other.example.org:{server.server_port}/clip")


# --- the library's own downloads -------------------------------------------------------------------------------------


def library_error(url: str) -> str:
    with pytest.raises(VideoDecodeError, match="^Cannot download ") as caught:
        load_frames(url)
    return str(caught.value)


def test_the_library_is_not_led_from_a_public_server_into_a_private_network(clips, names, one_public_address):
    """A private address that the user names is read as ever, and may redirect."""
    clip = content(clips[0].read_bytes())
    with Server("127.0.0.1") as public, Server("127.0.0.2", clip=clip, out=redirect("/clip")) as private:
        names["inside.example.org"] = ["127.0.0.2"]
        for target in (f"http://{private.place}/clip", f"http://inside.example.org:{private.server_port}/clip"):
            public.answers |= {"in": redirect("/again"), "again": redirect(target)}
            assert "redirects to" in (text := library_error(f"http://{public.place}/in")) and "not public" in text
        assert not private.requests
        public.answers |= {"clip": clip, "here": redirect("/clip")}
        private.answers["leave"] = redirect(f"http://{public.place}/here")
        private.answers["leave_and_return"] = redirect(f"http://{public.place}/in")
        for url in (f"{private.place}/out", f"{public.place}/here", f"{private.place}/leave"):
            assert len(load_frames(f"http://{url}")[0]) == 20
        assert "not public" in library_error(f"http://{private.place}/leave_and_return")


def test_the_library_reads_no_endless_redirect(monkeypatch):
    monkeypatch.setattr("pllava.video_source_pllava.MAX_DOWNLOAD_SECONDS", 5)
    with Server(clip=endless(302, Location="/clip")) as server:
        assert "redirects more than 5 times" in library_error(f"http://{server.place}/clip")


def test_the_library_uses_proxies_of_the_environment(clips, monkeypatch):
    """They resolve the names, which may be unknown here. What they would be led to is checked where it can be."""
    with Server() as proxy:
        proxy.answers["http:"] = lambda handler: answers(handler)
        monkeypatch.setenv("http_proxy", f"http://{proxy.place}")
        answers: Callable = content(clips[0].read_bytes())
        assert len(load_frames("http://unknown.invalid/clip")[0]) == 20
        assert proxy.requests == [("unknown.invalid", "http://unknown.invalid/clip")]
        answers = redirect("http://10.0.0.1/clip")
        monkeypatch.setattr(downloads, "resolve_host", literal)
        assert "not public" in library_error("http://8.8.8.8/clip")


async def literal(host: str, port: int) -> list[str]:
    return [host]
