# SPDX-License-Identifier: GPL-3.0-or-later
"""How a data plane is reached: directly, and through an HTTP proxy."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from peers.certificate import make_server_certificate
from peers.event_loop import in_event_loop, until
from peers.process import free_port
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.net.http_proxy import HttpProxy, HttpProxyError
from tunnelproxy.net.route import CertificateRefused, find_route
from tunnelproxy.service.state.certificates import Certificates, server_context


class Client(asyncio.Protocol):
    """Notes that it is connected, and hangs up when a test wants."""

    transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def close(self) -> None:
        assert self.transport is not None
        self.transport.close()


@asynccontextmanager
async def data_plane(tls: ssl.SSLContext) -> AsyncIterator[Endpoint]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])


@asynccontextmanager
async def http_proxy() -> AsyncIterator[tuple[int, list[bytes]]]:
    """An HTTP proxy; gives its port, and what it was asked for."""
    asked: list[bytes] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b"\r\n")[0])
        host, _, port = head.split()[1].decode().rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(forward(reader, there_writer), forward(there_reader, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], asked


@in_event_loop
async def test_a_protocol_is_connected_with_tls(certificates: Certificates) -> None:
    client = Client()
    async with data_plane(server_context(certificates)) as endpoint:
        route = find_route(endpoint, {}, capath=str(certificates.ca))
        assert (str(route), route.http_proxy) == (str(endpoint), None)
        await route.dial(client)
        client.close()


@in_event_loop
async def test_it_is_connected_through_the_http_proxy_of_the_environment(certificates: Certificates) -> None:
    client = Client()
    async with data_plane(server_context(certificates)) as endpoint, http_proxy() as (port, asked):
        route = find_route(endpoint, {"https_proxy": f"http://127.0.0.1:{port}"}, capath=str(certificates.ca))
        assert str(route) == f"{endpoint} through the HTTP proxy 127.0.0.1:{port}"
        await route.dial(client)
        client.close()
        assert asked == [f"CONNECT {endpoint} HTTP/1.1".encode()]


@in_event_loop
async def test_nobody_there_is_an_error_of_the_system(certificates: Certificates) -> None:
    with pytest.raises(ConnectionRefusedError):
        await find_route(Endpoint("127.0.0.1", free_port()), {}, capath=str(certificates.ca)).dial(Client())


@in_event_loop
async def test_a_peer_without_tls_is_an_error_with_the_reason(certificates: Certificates) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(OSError, match="TLS"):
            await find_route(endpoint, {}, capath=str(certificates.ca)).dial(Client())


@in_event_loop
async def test_a_certificate_of_an_unknown_ca_is_rejected(tmp_path: Path, certificates: Certificates) -> None:
    other = make_server_certificate(tmp_path / "other.pem", -1, 1)
    async with data_plane(server_context(certificates)) as endpoint:
        with pytest.raises(CertificateRefused) as caught:
            await find_route(endpoint, {}, capath=str(other)).dial(Client())
    assert caught.value.validity is None


@pytest.mark.parametrize("proxied", [False, True])
@in_event_loop
async def test_an_expired_certificate_is_rejected_with_its_dates(tmp_path: Path, proxied: bool) -> None:
    expired = make_server_certificate(tmp_path / "expired.pem", -3, -1)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(expired)
    async with data_plane(tls) as endpoint, http_proxy() as (port, asked):
        environment = {"https_proxy": f"http://127.0.0.1:{port}"} if proxied else {}
        with pytest.raises(CertificateRefused) as caught:
            await find_route(endpoint, environment, capath=str(expired)).dial(Client())
        # Another connection, on which the dates are not verified, goes the same way.
        assert len(asked) == (2 if proxied else 0)
    assert caught.value.validity is not None
    assert caught.value.validity.ends < caught.value.validity.starts + 3 * 86400


@in_event_loop
async def test_an_http_proxy_that_is_not_there_is_an_error_of_its_own(certificates: Certificates) -> None:
    environment = {"https_proxy": f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(HttpProxyError, match="cannot reach the HTTP proxy"):
        await find_route(Endpoint("127.0.0.1", 1), environment, capath=str(certificates.ca)).dial(Client())


def test_an_https_proxy_is_verified_with_the_ca_certificates_of_the_system_too(certificates: Certificates) -> None:
    route = find_route(Endpoint("e"), {"https_proxy": "https://proxy:3129"}, capath=str(certificates.authority))
    assert route.http_proxy == HttpProxy("proxy", 3129, True, "https_proxy")
    assert route.http_proxy_tls is not None
    assert len(route.http_proxy_tls.get_ca_certs()) >= len(route.tls.get_ca_certs()) == 1


def test_missing_ca_certificates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read certificate authorities from"):
        find_route(Endpoint("e"), {}, capath=str(tmp_path / "missing.pem"))


@in_event_loop
async def test_ca_certificates_that_come_later_are_read_before_each_attempt(
    tmp_path: Path, certificates: Certificates
) -> None:
    late = tmp_path / "late.pem"
    problems: list[str] = []
    client = Client()
    async with data_plane(server_context(certificates)) as endpoint:
        environment = {"https_proxy": "https://127.0.0.1:1", "no_proxy": "*"}
        route = find_route(endpoint, environment, capath=str(late), amiss=lambda problem, _: problems.append(problem))
        assert len(problems) == 1
        with pytest.raises(OSError, match="cannot read certificate authorities"):
            await route.dial(client)
        late.write_bytes(certificates.authority.read_bytes())
        await route.dial(client)
        await until(lambda: client.transport)
        client.close()


def test_a_problem_with_ca_certificates_is_reported_once_for_service_and_proxy(tmp_path: Path) -> None:
    problems: list[str] = []
    environment = {"https_proxy": "https://127.0.0.1:1"}
    capath = str(tmp_path / "late.pem")
    find_route(Endpoint("e"), environment, capath=capath, amiss=lambda problem, _: problems.append(problem))
    assert len(problems) == 1
