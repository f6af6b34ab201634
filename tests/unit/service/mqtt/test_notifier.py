# SPDX-License-Identifier: GPL-3.0-or-later
"""Which broker delivers tokens: an embedded one, an external one, or none. The integration tests run real ones."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop
from tunnelproxy.net.mqtt import BrokerLogin
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.events import Event
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.model import Identity, Tunnel
from tunnelproxy.service.mqtt import notifier as module
from tunnelproxy.service.mqtt.broker_address import BrokerAddress
from tunnelproxy.service.mqtt.listener import MqttListener
from tunnelproxy.service.mqtt.notifier import NO_BROKER, BrokerSettings, connected_notifier
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.state.directory import StateDirectory

IDENTITY = Identity("123456789012", "us-east-1")
TUNNEL = Tunnel(1, "t", None, "pump", ("SSH1",), 720, True, 0.0, 0.0, 1.0)


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    state = StateDirectory(tmp_path / "state")
    state.create()
    return state


class EmbeddedBroker:
    """Stands where Mosquitto runs: it listens for things, and is never reached by the service."""

    ports: list[int]

    def __init__(self, directory: Path, host: str, port: int) -> None:
        type(self).ports.append(port)
        self.listener = MqttListener(host, port, directory / "socket")
        self.notifier_login = BrokerLogin(str(directory / "socket"), 0, "me")

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def wait_until_it_listens(self) -> None:
        """It does."""


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> type[EmbeddedBroker]:
    EmbeddedBroker.ports = []
    monkeypatch.setattr(module, "Mosquitto", EmbeddedBroker)
    return EmbeddedBroker


@in_event_loop
async def test_without_a_broker_nothing_is_delivered_and_an_old_address_is_forgotten(
    state: StateDirectory, certificates: Certificates
) -> None:
    BrokerAddress("localhost", 8883).write(state.broker_address)
    async with connected_notifier(NO_BROKER, state, IDENTITY, host="127.0.0.1", name="localhost") as notifier:
        notifier.deliver(TUNNEL, "token")
        notifier.open(server_context(certificates), Limits(), lambda event: None)
        assert (notifier.announcement, notifier.outbox) == ("", None)
    assert BrokerAddress.read(state.broker_address) is None


@in_event_loop
async def test_an_external_broker_is_announced_and_remembered_and_what_it_has_not_taken_waits(
    state: StateDirectory,
) -> None:
    address = BrokerAddress("127.0.0.1", 1, encrypted=False, user="service")
    settings = BrokerSettings(external=address, password="secret")
    async with connected_notifier(settings, state, IDENTITY, host="127.0.0.1", name="localhost") as notifier:
        assert notifier.announcement == " mqtt=mqtt://127.0.0.1:1"
        notifier.deliver(TUNNEL, "token")
        assert notifier.outbox is not None
        assert (notifier.outbox.waiting, notifier.outbox.is_connected) == (1, False)
    assert BrokerAddress.read(state.broker_address) == address
    assert "secret" not in repr(settings)


@in_event_loop
async def test_an_authority_that_cannot_be_read_keeps_the_service_from_starting(
    state: StateDirectory, tmp_path: Path
) -> None:
    settings = BrokerSettings(external=BrokerAddress("127.0.0.1", 1, ca=str(tmp_path / "none")))
    with pytest.raises(ServiceError, match="--mqtt-ca"):
        async with connected_notifier(settings, state, IDENTITY, host="127.0.0.1", name="localhost"):
            pass


@in_event_loop
async def test_things_can_connect_to_an_embedded_broker_at_the_port_of_the_last_run(
    state: StateDirectory, embedded: type[EmbeddedBroker], certificates: Certificates
) -> None:
    state.broker_files.mkdir()
    events: list[Event] = []
    for _ in range(2):
        async with connected_notifier(
            BrokerSettings(port=0), state, IDENTITY, host="127.0.0.1", name="localhost"
        ) as notifier:
            notifier.open(server_context(certificates), Limits(), events.append)
            address = notifier.address
            assert address is not None
            assert notifier.announcement == f" mqtt=mqtts://localhost:{address.port}"
            context = ssl.create_default_context(cafile=str(certificates.authority))
            _, writer = await asyncio.open_connection(
                "127.0.0.1", address.port, ssl=context, server_hostname="localhost"
            )
            writer.transport.abort()
        assert BrokerAddress.read(state.broker_address) == address
    assert embedded.ports == [0, address.port]
