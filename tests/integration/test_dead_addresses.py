# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts with two addresses, the first of which, IPv6, drops every packet."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from peers.agent import AgentProcess
from peers.namespace import DEAD, NetworkNamespace, why_impossible
from peers.process import Process
from peers.service import TunnelingService
from peers.web_proxy import Tinyproxy
from tunnelproxy.net.happy_eyeballs import DELAY_SECONDS
from tunnelproxy.protocol.framing import Message, frame

pytestmark = pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())

NAMES = ("service.test", "printer.test", "proxy.test")
SOON = 8 * DELAY_SECONDS
"""The limit if the first address is abandoned after a quarter of a second; the kernel would take two minutes."""


@pytest.fixture(scope="module")
def place() -> Iterator[NetworkNamespace]:
    with NetworkNamespace() as namespace:
        namespace.name_hosts(*NAMES)
        yield namespace


@pytest.fixture(scope="module")
def service(place: NetworkNamespace) -> Iterator[TunnelingService]:
    with TunnelingService("--host", place.here, "--public-name", "service.test", "--mqtt-port", "0") as running:
        yield running


def test_the_dead_address_is_resolved_first(place: NetworkNamespace, tmp_path: Path) -> None:
    resolve = "import socket; print([info[4][0] for info in socket.getaddrinfo('service.test', 1, type=1)])"
    with Process([*place.enter, sys.executable, "-c", resolve], tmp_path / "log") as process:
        process.wait_for_output(re.escape(f"['{DEAD}', '{place.here}']"))


def test_an_agent_reaches_its_broker_its_service_and_its_destination(
    place: NetworkNamespace, service: TunnelingService, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        printer = stack.enter_context(socket.create_server((place.here, 0)))
        printer.settimeout(30)
        service.add_thing("pump", tmp_path / "pump", "--services", f"HTTP1=printer.test:{printer.getsockname()[1]}")
        agent = stack.enter_context(AgentProcess(tmp_path / "pump", enter=place.enter))
        opened = open_tunnel(service, place)
        assert agent.process is not None
        agent.process.wait_for_output("will connect to")
        source = stack.enter_context(connect_source(service, place, opened["sourceAccessToken"]))
        began = time.monotonic()
        source.send(frame(Message(type=Message.STREAM_START, streamId=1, serviceId="HTTP1", connectionId=1)))
        printer.accept()[0].close()
        to_destination = time.monotonic() - began
        to_broker = seconds_between(agent.output(), "starting as the agent", "connected to the MQTT broker")
        to_service = seconds_between(agent.output(), "joining it at", "connected to service.test")
        print(f"to the broker {to_broker:.2f} s, the service {to_service:.2f} s, a destination {to_destination:.2f} s")
        assert max(to_broker, to_service, to_destination) < SOON


def test_a_proxy_reaches_its_http_proxy(place: NetworkNamespace, service: TunnelingService, tmp_path: Path) -> None:
    token = open_tunnel(service, place)["sourceAccessToken"]
    with Tinyproxy(tmp_path / "tinyproxy", listen="0.0.0.0") as tinyproxy:
        environment = {
            **os.environ,
            "AWSIOT_TUNNEL_ACCESS_TOKEN": token,
            "https_proxy": f"http://proxy.test:{tinyproxy.port}",
        }
        # The HTTP proxy, which is not in the namespace, cannot resolve the service's name; and the certificate does
        # not contain that address.
        address = f"{place.here}:{service.data.rpartition(':')[2]}"
        command = [*place.enter, sys.executable, "-m", "tunnelproxy", "-m", "src", "-e", address, "-k", "-v", "6"]
        with Process(command, tmp_path / "log", environment) as source:
            source.wait_for_output("connected to")
            seconds = seconds_between(source.output(), "starting as the source", f"connected to {address}")
        print(f"through the HTTP proxy {seconds:.2f} s")
        assert seconds < SOON


def open_tunnel(service: TunnelingService, place: NetworkNamespace) -> dict[str, Any]:
    """Open a tunnel for the thing ``pump`` from this machine, which does not know the service's name."""
    port = service.api.rpartition(":")[2].rstrip("/")
    client = service.boto3_client(endpoint_url=f"https://{place.here}:{port}", verify=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened: dict[str, Any] = client.open_tunnel(destinationConfig={"thingName": "pump", "services": ["HTTP1"]})
    return opened


def connect_source(service: TunnelingService, place: NetworkNamespace, token: str) -> Any:
    return service.connect("source", token, address=(place.here, int(service.data.rpartition(":")[2])))


def seconds_between(log: str, first: str, second: str) -> float:
    """The time between two lines of a log."""
    times = []
    for words in (first, second):
        found = re.search(rf"(?m)^(\S+ \S+) .*{re.escape(words)}", log)
        assert found is not None, f"{words!r} is not in:\n{log}"
        times.append(datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f"))
    return (times[1] - times[0]).total_seconds()
