# SPDX-License-Identifier: GPL-3.0-or-later
"""What waits for the broker, and for how long. What a broker makes of it, the integration tests show."""

from __future__ import annotations

import json

import pytest

from tunnelproxy.net.mqtt import BrokerLogin
from tunnelproxy.service.model import Tunnel
from tunnelproxy.service.mqtt import outbox as module
from tunnelproxy.service.mqtt.outbox import Outbox


def tunnel(name: str, thing: str | None = "pump") -> Tunnel:
    return Tunnel(1, name, None, thing, ("SSH1",), 720, True, 0.0, 0.0, 1.0)


class RecordingSession:
    """Stands where the connection to the broker is; it is there, or not."""

    def __init__(self) -> None:
        self.is_connected = False
        self.published: list[tuple[str, str]] = []

    def publish(self, topic: str, payload: bytes) -> int | None:
        if not self.is_connected:
            return None
        self.published.append((topic, json.loads(payload)["clientAccessToken"]))
        return len(self.published)


@pytest.fixture
def session() -> RecordingSession:
    return RecordingSession()


@pytest.fixture
def notifications(session: RecordingSession, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    monkeypatch.setattr(module, "MqttSession", lambda broker, owner: session)
    return Outbox(BrokerLogin("127.0.0.1", 1, "me"), "us-east-1")


TOPIC = "$aws/things/pump/tunnels/notify"


def connect(notifications: Outbox, session: RecordingSession) -> None:
    session.is_connected = True
    notifications.connected()


def test_notifications_without_a_broker_are_sent_once_it_is_connected(
    notifications: Outbox, session: RecordingSession
) -> None:
    notifications.send(tunnel("a"), "first")
    notifications.send(tunnel("b"), "second")
    connect(notifications, session)
    assert session.published == [(TOPIC, "first"), (TOPIC, "second")]


def test_unconfirmed_notifications_are_sent_again_and_confirmed_ones_are_not(
    notifications: Outbox, session: RecordingSession
) -> None:
    connect(notifications, session)
    notifications.send(tunnel("a"), "first")
    notifications.send(tunnel("b"), "second")
    notifications.published(1)
    connect(notifications, session)
    assert session.published == [(TOPIC, "first"), (TOPIC, "second"), (TOPIC, "second")]


def test_a_newer_token_replaces_the_older_of_its_tunnel(notifications: Outbox, session: RecordingSession) -> None:
    notifications.send(tunnel("a"), "old")
    notifications.send(tunnel("a"), "new")
    connect(notifications, session)
    assert session.published == [(TOPIC, "new")]


def test_the_confirmation_of_the_older_token_is_none_of_the_newer(
    notifications: Outbox, session: RecordingSession
) -> None:
    connect(notifications, session)
    notifications.send(tunnel("a"), "old")
    notifications.send(tunnel("a"), "new")
    notifications.published(1)
    connect(notifications, session)
    assert session.published[-1] == (TOPIC, "new")
    assert len(session.published) == 3


def test_a_tunnel_without_a_thing_is_not_sent(notifications: Outbox, session: RecordingSession) -> None:
    connect(notifications, session)
    notifications.send(tunnel("a", None), "token")
    assert session.published == []


def test_not_more_waits_than_there_is_room_for(
    notifications: Outbox, session: RecordingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 2)
    for number in range(4):
        notifications.send(tunnel(str(number)), str(number))
    connect(notifications, session)
    assert [token for _, token in session.published] == ["2", "3"]
