# SPDX-License-Identifier: GPL-3.0-or-later
"""How the running broker's rules are changed. That Mosquitto obeys, the integration tests show."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.net.mqtt import BrokerLogin
from tunnelproxy.service.mqtt import dynsec_client as module
from tunnelproxy.service.mqtt.dynsec_client import DynsecClient
from tunnelproxy.service.mqtt.dynsec_rules import COMMANDS


class Session:
    """Stands where the connection to the broker is; it is there, or not, and confirms, or not."""

    def __init__(self) -> None:
        self.is_connected = True
        self.confirms = True
        self.sent: list[list[dict[str, Any]]] = []
        self.client: DynsecClient
        self.has_run = False

    async def run(self) -> None:
        self.has_run = True

    def publish(self, topic: str, payload: bytes) -> int | None:
        assert topic == COMMANDS
        if not self.is_connected:
            return None
        self.sent.append(json.loads(payload)["commands"])
        if self.confirms:
            asyncio.get_running_loop().call_soon(self.client.published, len(self.sent))
        return len(self.sent)


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.fixture
def client(session: Session, monkeypatch: pytest.MonkeyPatch) -> DynsecClient:
    monkeypatch.setattr(module, "MqttSession", lambda broker, owner, topic: session)
    session.client = DynsecClient(BrokerLogin("127.0.0.1", 1, "me"))
    return session.client


@in_event_loop
async def test_things_that_come_and_go_are_sent_once(client: DynsecClient, session: Session) -> None:
    client.assume(["gone", "stays"])
    assert await client.update(["stays", "new"])
    assert await client.update(["stays", "new"])
    (commands,) = session.sent
    assert [(each["command"], each.get("username", each.get("rolename"))) for each in commands] == [
        ("createRole", "new"),
        ("createClient", "new"),
        ("deleteClient", "gone"),
        ("deleteRole", "gone"),
    ]


@in_event_loop
async def test_many_things_are_sent_in_small_messages(client: DynsecClient, session: Session) -> None:
    assert await client.update([f"thing-{number}" for number in range(30)])
    assert [len(commands) for commands in session.sent] == [24, 24, 12]


@in_event_loop
async def test_without_a_connection_nothing_is_sent(client: DynsecClient, session: Session) -> None:
    session.is_connected = False
    assert not await client.update(["pump"])
    session.is_connected = True
    assert await client.update(["pump"])


@in_event_loop
async def test_what_is_not_confirmed_in_time_is_sent_again(
    client: DynsecClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONFIRM_SECONDS", 0.02)
    session.confirms = False
    assert not await client.update(["pump"])
    session.confirms = True
    assert await client.update(["pump"])
    assert session.sent[0] == session.sent[1]


@in_event_loop
async def test_a_lost_connection_ends_the_wait_for_a_confirmation(client: DynsecClient, session: Session) -> None:
    session.confirms = False
    task = asyncio.ensure_future(client.update(["pump"]))
    await until(lambda: session.sent)
    client.disconnected()
    assert not await asyncio.wait_for(task, 1)
    # A confirmation that comes too late, or twice, does no harm.
    client.published(1)


def test_what_the_broker_refuses_is_logged(client: DynsecClient, caplog: pytest.LogCaptureFixture) -> None:
    client.connected()
    client.received(json.dumps({"responses": [{"command": "createRole", "error": "No memory"}]}).encode())
    assert "mosquitto does not change its rules: createRole: No memory" in caplog.text


@in_event_loop
async def test_it_stays_connected(client: DynsecClient, session: Session) -> None:
    await client.run()
    assert session.has_run
