# SPDX-License-Identifier: GPL-3.0-or-later
"""Ten thousand sockets, or ``TEST_IDLE_SOCKETS``, that connect to a port and send nothing.

Meanwhile, clients with a key or a token can still connect, and open tunnels keep working.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from botocore.config import Config

from peers.echo import EchoServer
from peers.idle_sockets import IdleSockets
from peers.process import wait_for
from peers.proxies import ProxyPair
from peers.service import TunnelingService
from peers.thing import ThingClient

SOCKETS = int(os.environ.get("TEST_IDLE_SOCKETS", "10000"))
CALLS = 10
ANSWER_WITHIN = 15.0
MEGA = 1_000_000

pytestmark = [pytest.mark.alone, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService("--mqtt-port", "0", "-v", "2") as running:
        yield running


@pytest.fixture(scope="module")
def thing(service: TunnelingService, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the thing ``pump``."""
    folder = tmp_path_factory.mktemp("things") / "pump"
    service.add_thing("pump", folder)
    return folder


@pytest.fixture(scope="module")
def pair(service: TunnelingService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyPair]:
    with EchoServer() as echo, ProxyPair(service, tmp_path_factory.mktemp("proxies"), {"SSH1": echo.port}) as running:
        yield running


def describe_a_tunnel(service: TunnelingService, pair: ProxyPair) -> None:
    """Make each call on a new connection."""
    client = service.boto3_client(config=Config(retries={"max_attempts": 0}, connect_timeout=20, read_timeout=20))
    client.describe_tunnel(tunnelId=pair.tunnel.tunnel_id)
    client.close()


def use_a_tunnel(service: TunnelingService, pair: ProxyPair) -> None:
    with socket.create_connection(("127.0.0.1", pair.ports["SSH1"]), timeout=30) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, including retries like those of clients."""
    began = time.monotonic()
    while True:
        try:
            call()
        except AssertionError:
            raise
        except Exception as error:
            if time.monotonic() - began > 60:
                raise AssertionError(f"no success within 60 s: {error}") from error
        else:
            return time.monotonic() - began


def measured(what: str, call: Callable[[], object]) -> list[float]:
    taken = sorted(seconds(call) for _ in range(CALLS))
    print(f"{what}: median {taken[len(taken) // 2] * 1000:.0f} ms, longest {taken[-1] * 1000:.0f} ms")
    return taken


@pytest.mark.parametrize("addresses", [1, 100])
@pytest.mark.parametrize("port", ["api", "data", "mqtt"])
def test_idle_sockets(
    service: TunnelingService, pair: ProxyPair, thing: Path, tmp_path: Path, port: str, addresses: int
) -> None:
    mqtt_port = int(service.mqtt.rpartition(":")[2])
    tunnel = service.boto3_client().open_tunnel(destinationConfig={"services": ["SSH1"]})

    def describe() -> None:
        describe_a_tunnel(service, pair)

    def join() -> None:
        with service.connect(
            "source", tunnel["sourceAccessToken"], client_token="a-client-token-of-32-characters--", open_timeout=30
        ) as end:
            end.recv(timeout=30)

    def agent() -> None:
        with ThingClient("pump", thing, mqtt_port):
            pass

    calls = {"api": describe, "data": join, "mqtt": agent}
    target = {"api": service.api.removeprefix("https://"), "data": service.data, "mqtt": f"127.0.0.1:{mqtt_port}"}[port]
    where = int(target.rpartition(":")[2])
    process = psutil.Process(service.pid)
    broker = next(child for child in process.children() if child.name() == "mosquitto")
    measured(f"{port}, before", calls[port])
    quiet = process.memory_info().rss, process.num_fds()
    with IdleSockets("127.0.0.1", where, SOCKETS, tmp_path / "idle.log", addresses=addresses) as idle:
        with suppress(AssertionError):
            wait_for(lambda: idle.held() >= SOCKETS * 0.95, "all are connected", 10)
        taken = measured(
            f"{port}, with {idle.held()} idle sockets of {SOCKETS} from {addresses} address(es)", calls[port]
        )
        use = measured("  a connection through an open tunnel", lambda: use_a_tunnel(service, pair))
        print(
            f"  the service: {(process.memory_info().rss - quiet[0]) / MEGA:+.0f} MB, {process.num_fds()} descriptors; "
            f"the broker: {broker.memory_info().rss / MEGA:.0f} MB, {broker.num_fds()} descriptors"
        )
    began = time.monotonic()
    wait_for(lambda: process.num_fds() <= quiet[1] + 4, "the service has closed them", 30)
    print(f"  closed {time.monotonic() - began:.1f} s after their clients exited")
    assert taken[-1] < ANSWER_WITHIN
    assert use[-1] < ANSWER_WITHIN
