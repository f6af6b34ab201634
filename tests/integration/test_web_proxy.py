# SPDX-License-Identifier: GPL-3.0-or-later
"""Proxies and hub behind a real HTTP proxy: tinyproxy, with and without stunnel's TLS in front."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from peers.exchange import ExchangeServer, exchange
from peers.process import Process, free_port, wait_for
from peers.proxies import OpenTunnel, open_tunnel
from peers.service import TunnelingService
from peers.web_proxy import Tinyproxy, TlsFront
from tunnelproxy.hub import client
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.net.route import find_route
from tunnelproxy.protocol.session import Mode
from tunnelproxy.proxy.link import TunnelCredentials
from tunnelproxy.proxy.source import SourceProxy

SIZE = 5 * 1000 * 1000


@pytest.fixture(scope="module")
def tinyproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tinyproxy]:
    with Tinyproxy(tmp_path_factory.mktemp("tinyproxy"), "user pass") as running:
        yield running


@pytest.fixture(scope="module")
def tls_front(
    service: TunnelingService, tinyproxy: Tinyproxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TlsFront]:
    # The service's authority has already signed a certificate for the loopback.
    keys = service.state_dir / "keys"
    folder = tmp_path_factory.mktemp("stunnel")
    with TlsFront(folder, tinyproxy.port, keys / "server.pem", keys / "server-key.pem") as running:
        yield running


@pytest.fixture
def tunnel(service: TunnelingService) -> OpenTunnel:
    return open_tunnel(service, ["HTTP1"])


def start(
    service: TunnelingService, token: str, arguments: list[str], log: Path, environment: Mapping[str, str]
) -> Process:
    command = [sys.executable, "-m", "tunnelproxy", *arguments]
    return Process(command, log, {**service.environment, "AWSIOT_TUNNEL_ACCESS_TOKEN": token, **environment})


def move_data(
    service: TunnelingService, tunnel: OpenTunnel, folder: Path, environment: Mapping[str, str]
) -> tuple[str, str]:
    """Run both proxies in an environment, send data through them, and return what they log."""
    with ExitStack() as stack:
        server = stack.enter_context(ExchangeServer(SIZE))
        ends = []
        for name, token, arguments in (
            ("destination", tunnel.destination_token, ["-d", f"HTTP1={server.port}"]),
            ("source", tunnel.source_token, ["-m", "src"]),
        ):
            process = start(service, token, [*arguments, "-v", "6"], folder / name, environment)
            ends.append(stack.enter_context(process))
            process.wait_for_output("connected to")
        port = int(ends[1].wait_for_output(r"HTTP1: listening on 127.0.0.1:(\d+)")[1])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(60)
            outcome = exchange(sock, SIZE, 1)
        assert wait_for(lambda: server.outcomes.get(outcome.sent), "everything arrived").sent == outcome.received
        assert [end.stop() for end in ends] == [0, 0]
        return ends[0].output(), ends[1].output()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_data_passes_through_an_http_proxy(
    service: TunnelingService, tinyproxy: Tinyproxy, tunnel: OpenTunnel, tmp_path: Path, variable: str
) -> None:
    before = tinyproxy.connections_to(service.data)
    address = f"http://user:pass@127.0.0.1:{tinyproxy.port}"
    logs = move_data(service, tunnel, tmp_path, {variable: address})
    assert tinyproxy.connections_to(service.data) == before + 2
    for log in logs:
        assert f"connected to {service.data} through the HTTP proxy 127.0.0.1:{tinyproxy.port}" in log
        assert "user" not in log
        assert "Traceback" not in log


def test_data_passes_through_an_https_proxy(
    service: TunnelingService, tinyproxy: Tinyproxy, tls_front: TlsFront, tunnel: OpenTunnel, tmp_path: Path
) -> None:
    before = tinyproxy.connections_to(service.data)
    address = f"https://user:pass@127.0.0.1:{tls_front.port}"
    logs = move_data(service, tunnel, tmp_path, {"HTTPS_PROXY": address})
    assert tinyproxy.connections_to(service.data) == before + 2
    for log in logs:
        assert f"through the HTTP proxy 127.0.0.1:{tls_front.port}" in log
        assert "user" not in log
        assert "Traceback" not in log


@in_event_loop
async def test_tls_inside_tls_works_without_uvloop(
    service: TunnelingService, tinyproxy: Tinyproxy, tls_front: TlsFront, tunnel: OpenTunnel
) -> None:
    environment = {"HTTPS_PROXY": f"https://user:pass@127.0.0.1:{tls_front.port}"}
    route = find_route(Endpoint.parse(service.data), environment, capath=service.ca_pem)
    access = TunnelCredentials(Mode.SOURCE, tunnel.source_token, "c" * 32)
    # Not as a process, which would use uvloop if it is installed.
    proxy = SourceProxy(route, access, dict.fromkeys)
    running = asyncio.ensure_future(proxy.run())
    await until(proxy.end.ready.is_set)
    assert list(proxy.end.services) == ["HTTP1"]
    running.cancel()
    await asyncio.wait({running})


def test_no_proxy_bypasses_the_proxy(service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    move_data(service, tunnel, tmp_path, {"HTTPS_PROXY": nobody, "NO_PROXY": "127.0.0.0/8"})


def test_the_lower_case_variable_takes_precedence(
    service: TunnelingService, tinyproxy: Tinyproxy, tunnel: OpenTunnel, tmp_path: Path
) -> None:
    environment = {
        "HTTPS_PROXY": f"http://127.0.0.1:{free_port()}",
        "https_proxy": f"http://user:pass@127.0.0.1:{tinyproxy.port}",
    }
    move_data(service, tunnel, tmp_path, environment)


@pytest.mark.parametrize(
    ("userinfo", "words"),
    [("", "requires a user and a password"), ("user:wr%20ng@", "does not accept the user and password in https_proxy")],
)
def test_a_proxy_that_rejects_the_credentials(
    service: TunnelingService, tinyproxy: Tinyproxy, tunnel: OpenTunnel, tmp_path: Path, userinfo: str, words: str
) -> None:
    environment = {"https_proxy": f"http://{userinfo}127.0.0.1:{tinyproxy.port}"}
    with start(service, tunnel.source_token, ["-m", "src"], tmp_path / "log", environment) as source:
        assert source.wait() == 1
        assert words in source.output()
        assert not re.search(r"wr(%20| )ng", source.output())


def test_a_proxy_that_does_not_allow_the_port(service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
    with Tinyproxy(tmp_path / "tinyproxy", connect_port=443) as tinyproxy:
        environment = {"https_proxy": f"http://127.0.0.1:{tinyproxy.port}"}
        with start(service, tunnel.source_token, ["-m", "src"], tmp_path / "log", environment) as source:
            assert source.wait() == 1
            assert f"does not allow connections to {service.data} (403" in source.output()


def test_a_service_that_the_proxy_cannot_reach_is_retried(
    service: TunnelingService, tinyproxy: Tinyproxy, tunnel: OpenTunnel, tmp_path: Path
) -> None:
    environment = {
        "https_proxy": f"http://user:pass@127.0.0.1:{tinyproxy.port}",
        "AWSIOT_TUNNEL_ENDPOINT": f"127.0.0.1:{free_port()}",
    }
    with start(service, tunnel.source_token, ["-m", "src"], tmp_path / "log", environment) as source:
        source.wait_for_output(r"does not reach 127\.0\.0\.1:\d+ \(50\d .*trying again in")


def test_a_proxy_that_comes_back_is_used_again(service: TunnelingService, tunnel: OpenTunnel, tmp_path: Path) -> None:
    with Tinyproxy(tmp_path / "tinyproxy") as tinyproxy:
        environment = {"https_proxy": f"http://127.0.0.1:{tinyproxy.port}"}
        with start(service, tunnel.source_token, ["-m", "src"], tmp_path / "log", environment) as source:
            source.wait_for_output("listening on")
            tinyproxy.stop()
            source.wait_for_output(r"cannot reach the HTTP proxy .*: connection refused; trying again in")
            config = tmp_path / "tinyproxy" / "tinyproxy.conf"
            with Process([*tinyproxy.process.command[:2], "-c", config], tmp_path / "again"):
                wait_for(lambda: source.output().count("connected to") == 2, "the source is back", 30)


def test_the_hub_uses_the_http_proxy(
    service: TunnelingService,
    tinyproxy: Tinyproxy,
    tunnel: OpenTunnel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass@127.0.0.1:{tinyproxy.port}")
    before = tinyproxy.connections_to(service.data)
    try:
        client.adopt(
            "thing1",
            tunnel_id=tunnel.tunnel_id,
            tunnel_arn=tunnel.arn,
            source_token=tunnel.source_token,
            services=["HTTP1"],
            caller=client.Caller({**os.environ, **service.environment}, "/"),
        )
        wait_for(lambda: tinyproxy.connections_to(service.data) == before + 1, "the HTTP proxy was asked")
        wait_for(lambda: client.status()["tunnels"][0]["state"] == "connected", "the hub is connected")
    finally:
        client.stop()
