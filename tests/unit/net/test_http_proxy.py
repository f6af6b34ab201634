# SPDX-License-Identifier: GPL-3.0-or-later
"""Which HTTP proxy the environment names, and what is made of an HTTP proxy's answers."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from peers.certificate import make_server_certificate
from peers.event_loop import in_event_loop
from peers.process import free_port
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.net.http_proxy import HttpProxy, HttpProxyError, find_http_proxy, open_tunnel
from tunnelproxy.net.route import Route, find_route
from tunnelproxy.net.socket_options import UnansweredData
from tunnelproxy.protocol.session import Mode
from tunnelproxy.proxy.link import LinkLost, TunnelCredentials, connect
from tunnelproxy.service.state.certificates import Certificates, server_context

AWS = Endpoint("data.tunneling.iot.us-east-1.amazonaws.com")


class TestEnvironment:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("http://proxy:8080", ("proxy", 8080, False, None)),
            ("http://proxy:8080/", ("proxy", 8080, False, None)),
            ("proxy:8080", ("proxy", 8080, False, None)),
            ("http://proxy", ("proxy", 3128, False, None)),
            ("https://proxy", ("proxy", 3128, True, None)),
            ("HTTPS://proxy:443", ("proxy", 443, True, None)),
            ("http://[fd00::1]:8080", ("fd00::1", 8080, False, None)),
            ("http://user:word@proxy:1", ("proxy", 1, False, "user:word")),
            ("http://us%40er:w%3Ao%2Frd@proxy:1", ("proxy", 1, False, "us@er:w:o/rd")),
            ("http://user@proxy:1", ("proxy", 1, False, "user:")),
        ],
    )
    def test_addresses(self, url: str, expected: tuple[str, int, bool, str | None]) -> None:
        found = find_http_proxy(AWS, {"HTTPS_PROXY": url})
        assert found is not None
        assert (found.host, found.port, found.tls, found.credentials) == expected

    @pytest.mark.parametrize(
        "url",
        [
            "http://:8080",
            "http://proxy:port",
            "http://proxy:0",
            "http://proxy:99999",
            "http://proxy/path",
            "http://user:se/cret@proxy:1",
            "http://user:se#cret@proxy:1",
            "http://user:12?cret@proxy:1",
            "http://[::1",
        ],
    )
    def test_what_is_no_address_is_told_without_its_text(self, url: str) -> None:
        with pytest.raises(
            ConfigurationError, match=r"^https_proxy does not name an HTTP proxy: give http://"
        ) as caught:
            find_http_proxy(AWS, {"https_proxy": url})
        assert "cret" not in str(caught.value)

    def test_other_kinds_of_proxy_are_named(self) -> None:
        with pytest.raises(ConfigurationError, match="HTTPS_PROXY: socks5:// is not supported"):
            find_http_proxy(AWS, {"HTTPS_PROXY": "socks5://proxy:1080"})

    @pytest.mark.parametrize(
        ("environment", "host"),
        [
            ({}, None),
            ({"HTTPS_PROXY": "http://upper"}, "upper"),
            ({"https_proxy": "http://lower"}, "lower"),
            ({"https_proxy": "http://lower", "HTTPS_PROXY": "http://upper"}, "lower"),
            ({"https_proxy": "", "HTTPS_PROXY": "http://upper"}, None),
            ({"HTTP_PROXY": "http://other", "http_proxy": "http://other", "ALL_PROXY": "http://other"}, None),
            ({"HTTPS_PROXY": "http://upper", "NO_PROXY": "*"}, None),
            ({"HTTPS_PROXY": "http://upper", "NO_PROXY": "*", "no_proxy": ""}, "upper"),
        ],
    )
    def test_which_variable_counts(self, environment: dict[str, str], host: str | None) -> None:
        found = find_http_proxy(AWS, environment)
        assert (found.host if found else None) == host

    @pytest.mark.parametrize(
        ("endpoint", "exceptions", "direct"),
        [
            (AWS, "", False),
            (AWS, "amazonaws.com", True),
            (AWS, ".amazonaws.com", True),
            (AWS, "*.amazonaws.com", True),
            (AWS, "AmazonAWS.com", True),
            (AWS, "other.org, amazonaws.com ,", True),
            (AWS, "naws.com", False),
            (AWS, AWS.host, True),
            (AWS, f"{AWS.host}:443", True),
            (AWS, f"{AWS.host}:8443", False),
            (AWS, ".amazonaws.com:443", True),
            (AWS, "10.0.0.0/8", False),
            (Endpoint("10.1.2.3", 8444), "10.0.0.0/8", True),
            (Endpoint("10.1.2.3", 8444), "10.1.2.3", True),
            (Endpoint("10.1.2.3", 8444), "10.1.2.3:8444", True),
            (Endpoint("10.1.2.3", 8444), "10.1.2.3:8443", False),
            (Endpoint("11.1.2.3", 8444), "10.0.0.0/8", False),
            (Endpoint("fd00::1", 8444), "fd00::/8", True),
            (Endpoint("fd00::1", 8444), "[fd00::1]", True),
            (Endpoint("fd00::1", 8444), "[fd00::1]:8444", True),
            (Endpoint("fd00::1", 8444), "fd00::1", True),
            (Endpoint("fd00::1", 8444), "fd00::2", False),
        ],
    )
    def test_exceptions(self, endpoint: Endpoint, exceptions: str, direct: bool) -> None:
        found = find_http_proxy(endpoint, {"HTTPS_PROXY": "http://proxy", "NO_PROXY": exceptions})
        assert (found is None) is direct

    def test_the_password_is_not_in_what_is_printed(self) -> None:
        found = find_http_proxy(AWS, {"HTTPS_PROXY": "http://user:secret@proxy:1"})
        assert "secret" not in f"{found} {found!r} {find_route(AWS, {'HTTPS_PROXY': 'http://user:secret@proxy:1'})}"


@asynccontextmanager
async def answering(answer: bytes, asked: list[bytes], tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Something that listens, takes a request, and answers like this; the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        if answer.startswith(b"HTTP/1.1 200"):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


def proxy_at(port: int, *, tls: bool = False, credentials: str | None = None) -> HttpProxy:
    return HttpProxy("127.0.0.1", port, tls, "HTTPS_PROXY", credentials)


@in_event_loop
async def test_the_request_names_the_endpoint_and_carries_the_credentials() -> None:
    asked: list[bytes] = []
    async with answering(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n", asked) as port:
        sock = await open_tunnel(proxy_at(port, credentials="user:pässword"), None, AWS)
        sock.close()
    head, *lines = asked[0].decode().split("\r\n")
    assert head == f"CONNECT {AWS.host}:443 HTTP/1.1"
    assert f"Host: {AWS.host}:443" in lines
    assert f"Proxy-Authorization: Basic {base64.b64encode('user:pässword'.encode()).decode()}" in lines


@in_event_loop
async def test_an_ipv6_endpoint_stands_in_brackets() -> None:
    asked: list[bytes] = []
    async with answering(b"HTTP/1.0 200 OK\r\n\r\n", asked) as port:
        (await open_tunnel(proxy_at(port), None, Endpoint("fd00::1", 8444))).close()
    assert asked[0].startswith(b"CONNECT [fd00::1]:8444 HTTP/1.1\r\n")
    assert b"Proxy-Authorization" not in asked[0]


@pytest.mark.parametrize(
    ("answer", "credentials", "words", "permanent"),
    [
        (
            "HTTP/1.1 407 Authenticate\r\n\r\n",
            None,
            "requires a user and a password .407 Authenticate.: put USER",
            True,
        ),
        (
            "HTTP/1.1 407 Authenticate\r\n\r\n",
            "user:secret",
            "does not accept the user and password in HTTPS_PROXY",
            True,
        ),
        ("HTTP/1.1 401 Unauthorized\r\n\r\n", "user:secret", "does not accept the user and password", True),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", None, "does not allow connections to data.*:443 .403 Forbidden.: ask", True),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", None, "does not reach data.*:443 .502 Bad Gateway.", False),
        ("HTTP/1.1 504\r\n\r\n", None, "does not reach data.*:443 .504.", False),
        ("HTTP/1.1 405 Not Allowed\r\n\r\n", None, "does not connect to data.*:443 .405 Not Allowed.", True),
        ("SSH-2.0-OpenSSH\r\n", None, "is not an HTTP proxy; if it requires TLS, give https://", True),
        ("", None, "closed the connection without an answer", False),
        ("HTTP/1.1 200 OK\r\n\r\nhello", None, "added data of its own", False),
        ("HTTP/1.1 200 " + "x" * 20000, None, "added data of its own|is not an HTTP proxy", None),
    ],
)
def test_what_an_answer_means(answer: str, credentials: str | None, words: str, permanent: bool | None) -> None:
    @in_event_loop
    async def check() -> None:
        async with answering(answer.encode(), []) as port:
            with pytest.raises(HttpProxyError, match=words) as caught:
                await open_tunnel(proxy_at(port, credentials=credentials), None, AWS)
            assert permanent in (None, caught.value.permanent)
            assert "secret" not in str(caught.value)

    check()


@in_event_loop
async def test_a_proxy_that_is_not_there_may_come_back() -> None:
    with pytest.raises(
        HttpProxyError, match=r"cannot reach the HTTP proxy .* \(HTTPS_PROXY\): connection refused"
    ) as caught:
        await open_tunnel(proxy_at(free_port()), None, AWS)
    assert not caught.value.permanent


@in_event_loop
async def test_a_proxy_without_tls_where_tls_was_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        async def hang_up() -> None:
            loop = asyncio.get_running_loop()
            sock, _ = await loop.run_in_executor(None, listening.accept)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            sock.close()

        hanging = asyncio.ensure_future(hang_up())
        with pytest.raises(HttpProxyError, match=r"no TLS with the HTTP proxy .* give http:// in HTTPS_PROXY"):
            await open_tunnel(proxy_at(port, tls=True), ssl.create_default_context(), AWS)
        await hanging


@in_event_loop
async def test_a_certificate_of_the_proxy_that_is_not_to_be_trusted(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "keys", tmp_path / "ca")
    certificates.ensure("localhost")
    async with answering(b"", [], server_context(certificates)) as port:
        route = find_route(AWS, {"HTTPS_PROXY": f"https://127.0.0.1:{port}"})
        with pytest.raises(LinkLost, match=r"the certificate of the HTTP proxy .* cannot be verified") as caught:
            await connect(route, TunnelCredentials(Mode.SOURCE, "token", "client-token"), None)  # type: ignore[arg-type]
        assert caught.value.permanent


@in_event_loop
async def test_a_silent_proxy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.link.CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = proxy_at(silent.getsockname()[1])
        route = Route(AWS, ssl.create_default_context(), proxy)
        with pytest.raises(LinkLost, match=rf"no answer from {AWS} through the HTTP proxy {proxy} within"):
            await connect(route, TunnelCredentials(Mode.SOURCE, "token", "client-token"), None)  # type: ignore[arg-type]


@in_event_loop
async def test_a_proxy_whose_machine_acknowledges_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelproxy.net.http_proxy._LOOK_SECONDS", 0.02)
    looks = iter([0.0, 35.0, 36.0])
    # Of the two joined connections, only the one to the proxy is a TCP connection.
    monkeypatch.setattr(
        UnansweredData, "seconds", lambda unanswered: next(looks) if unanswered._sock is not None else 0.0
    )
    certificates = Certificates(tmp_path / "keys", tmp_path / "ca")
    certificates.ensure("localhost")
    tls = ssl.create_default_context(cafile=str(certificates.authority))
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n", [], server_context(certificates)) as port:
        sock = await open_tunnel(HttpProxy("localhost", port, True, "HTTPS_PROXY", None), tls, AWS)
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 10) == b""
        sock.close()
    assert next(looks, None) is None


@pytest.mark.parametrize(
    ("lines", "offered"),
    [
        ("Proxy-Authenticate: NTLM\r\n", "NTLM"),
        ("Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n", "Negotiate and NTLM"),
        ("proxy-authenticate: Negotiate, NTLM\r\n", "Negotiate and NTLM"),
        ('Proxy-Authenticate: Digest realm="a, Basic", nonce="b", Negotiate\r\n', "Digest and Negotiate"),
        ("Proxy-Authenticate: NTLM TlRMTVNTUAACAAAA==\r\n", "NTLM"),
    ],
)
@pytest.mark.parametrize("credentials", [None, "user:secret"])
def test_a_proxy_without_basic_authentication_is_told_with_what_it_offers(
    lines: str, offered: str, credentials: str | None
) -> None:
    @in_event_loop
    async def check() -> None:
        async with answering(f"HTTP/1.1 407 Authenticate\r\n{lines}\r\n".encode(), []) as port:
            words = (
                rf"offers only {offered} to authenticate \(407 Authenticate\), .* such as cntlm or px, and name that"
            )
            with pytest.raises(HttpProxyError, match=words) as caught:
                await open_tunnel(proxy_at(port, credentials=credentials), None, AWS)
            assert caught.value.permanent

    check()


@pytest.mark.parametrize(
    "lines", ["Proxy-Authenticate: NTLM\r\nProxy-Authenticate: basic\r\n", 'X: Basic realm=""\r\n']
)
@in_event_loop
async def test_a_proxy_with_basic_authentication_among_others_is_asked_for_it(lines: str) -> None:
    async with answering(f"HTTP/1.1 407 Authenticate\r\n{lines}\r\n".encode(), []) as port:
        with pytest.raises(HttpProxyError, match="requires a user and a password"):
            await open_tunnel(proxy_at(port), None, AWS)


@pytest.mark.parametrize(
    ("days", "words"),
    [((1, 3), "is not valid yet: it is valid from "), ((-3, -1), "has expired: it was valid until ")],
    ids=["not yet valid", "expired"],
)
@in_event_loop
async def test_the_dates_of_a_proxys_certificate_are_told(tmp_path: Path, days: tuple[int, int], words: str) -> None:
    file = make_server_certificate(tmp_path / "proxy.pem", *days)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    async with answering(b"", [], tls) as port:
        route = find_route(AWS, {"HTTPS_PROXY": f"https://127.0.0.1:{port}"}, capath=str(file))
        with pytest.raises(LinkLost, match=rf"the certificate of the HTTP proxy 127.0.0.1:{port} {words}") as caught:
            await connect(route, TunnelCredentials(Mode.SOURCE, "token", "client-token"), None)  # type: ignore[arg-type]
        assert caught.value.permanent is (days[1] < 0)
