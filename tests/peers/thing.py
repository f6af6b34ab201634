# SPDX-License-Identifier: GPL-3.0-or-later
"""An MQTT client with the credentials of a thing, for any operation."""

from __future__ import annotations

import contextlib
import json
import queue
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

__all__ = ["ThingClient", "notify_topic"]

_DEADLINE = 10.0


def notify_topic(thing: str) -> str:
    return f"$aws/things/{thing}/tunnels/notify"


class ThingClient:
    """Connects when the block begins. ``heard`` contains the delivered messages: topics and decoded JSON.

    Args:
        folder: the folder that ``service add-thing`` wrote for the thing.
        version: the MQTT version, 4 (3.1.1) or 5; only the latter reports the outcome of a message.
        client_id: its client ID.
        clean: whether to use a session that does not outlive the connection, unlike agents.
    """

    def __init__(
        self, thing: str, folder: Path, port: int, *, version: int = 4, client_id: str = "", clean: bool = False
    ) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._thing = thing
        self._port = port
        self._connected: queue.Queue[Any] = queue.Queue()
        self._answers: queue.Queue[Any] = queue.Queue()
        authorities = [path for name in ("broker-ca.pem", "ca.pem") if (path := folder / name).exists()]
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"any-client-id-of-{thing}",
            clean_session=clean if version == 4 else None,
            protocol=MQTTProtocolVersion(version),
            reconnect_on_failure=False,
        )
        client.tls_set_context(ssl.create_default_context(cafile=str(authorities[0])))
        client.username_pw_set(thing, (folder / "password").read_text().strip())
        client.on_connect = lambda client, data, flags, reason, properties: self._connected.put(reason)
        client.on_subscribe = lambda client, data, mid, reasons, properties: self._answers.put(reasons[0].value)
        client.on_publish = lambda client, data, mid, reason, properties: self._answers.put(reason.value)
        client.on_message = lambda client, data, message: self.heard.append(
            (message.topic, json.loads(message.payload))
        )

    def __enter__(self) -> ThingClient:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        reason = self._connected.get(timeout=_DEADLINE)
        if reason.is_failure:
            self._client.loop_stop()
            raise PermissionError(str(reason))
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def is_let_in(self) -> bool:
        """Whether it can connect and subscribe to its own topic, with a clean session."""
        with contextlib.suppress(PermissionError), self:
            return self.subscribe(notify_topic(self._thing)) < 0x80
        return False

    def tokens(self) -> list[tuple[str, str]]:
        """The delivered topics and tokens, each once: MQTT 5 delivers a message once per matching subscription."""
        return sorted({(topic, content["clientAccessToken"]) for topic, content in self.heard})

    def subscribe(self, topic: str) -> int:
        """Subscribe, and return the broker's reason code: 0 to 2 if it grants the subscription, else 0x80 or more."""
        return self._ask(lambda: self._client.subscribe(topic, qos=1))

    def publish(self, topic: str, token: str) -> int:
        """Publish, and return the broker's reason code; MQTT 3.1.1 has none for a refusal."""
        return self._ask(lambda: self._client.publish(topic, json.dumps({"clientAccessToken": token}), qos=1))

    def _ask(self, ask: Callable[[], object]) -> int:
        ask()
        code: int = self._answers.get(timeout=_DEADLINE)
        return code
