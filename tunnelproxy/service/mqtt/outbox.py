# SPDX-License-Identifier: Apache-2.0
"""Notifies things of their access tokens by MQTT, like AWS.

Source: "IoT agent snippet", AWS IoT Developer Guide.
"""

from __future__ import annotations

import json
import logging

from ...net.mqtt import BrokerLogin, MqttSession
from ..model import Tunnel

__all__ = ["MAX_PENDING", "Outbox"]

MAX_PENDING = 1000
"""Notifications that may wait for the broker. One more drops the oldest."""

log = logging.getLogger(__name__)


class Outbox:
    """Sends notifications to a broker in the background, and resends them until the broker has confirmed them.

    They are kept only in memory, because access tokens are never stored: if one is lost with this process, rotate it.

    Args:
        broker: where and how to connect.
        region: the region in the notifications.

    Attributes:
        is_connected: whether the broker is connected.
    """

    def __init__(self, broker: BrokerLogin, region: str) -> None:
        self._session = MqttSession(broker, self)
        self._region = region
        # By tunnel: a newer token invalidates the older one.
        self._pending: dict[str, tuple[str, bytes]] = {}
        self._sent: dict[int, tuple[str, bytes]] = {}
        self.is_connected = False

    @property
    def waiting(self) -> int:
        """How many notifications the broker has not confirmed."""
        return len(self._pending)

    async def run(self) -> None:
        """Stay connected to the broker until cancelled."""
        await self._session.run()

    def send(self, tunnel: Tunnel, token: str) -> None:
        """Notify the tunnel's thing of an access token, if the tunnel has a thing."""
        if tunnel.thing_name is None:
            return
        payload = {
            "clientAccessToken": token,
            "clientMode": "destination",
            "region": self._region,
            "services": list(tunnel.services),
        }
        self._pending.pop(tunnel.tunnel_id, None)
        self._pending[tunnel.tunnel_id] = (tunnel.thing_name, json.dumps(payload).encode())
        if len(self._pending) > MAX_PENDING:
            dropped = next(iter(self._pending))
            del self._pending[dropped]
            log.warning(
                "tunnel %s: its notification is dropped: too many are waiting for the MQTT broker",
                dropped,
                extra={"tunnel": dropped},
            )
        self._publish(tunnel.tunnel_id)

    # Callbacks of the session

    def connected(self) -> None:
        self.is_connected = True
        self._sent.clear()
        for tunnel_id in list(self._pending):
            self._publish(tunnel_id)

    def disconnected(self) -> None:
        self.is_connected = False
        if self._pending:
            log.warning("%d notifications are waiting for the MQTT broker", len(self._pending))

    def received(self, payload: bytes) -> None:
        """Never called: the service subscribes to no topic."""

    def published(self, number: int) -> None:
        tunnel_id, payload = self._sent.pop(number, ("", b""))
        if tunnel_id in self._pending and self._pending[tunnel_id][1] == payload:
            thing, _ = self._pending.pop(tunnel_id)
            about = {"tunnel": tunnel_id, "thing": thing}
            log.info("tunnel %s: the MQTT broker has accepted the notification for %s", tunnel_id, thing, extra=about)

    def _publish(self, tunnel_id: str) -> None:
        thing, payload = self._pending[tunnel_id]
        number = self._session.publish(f"$aws/things/{thing}/tunnels/notify", payload)
        if number is not None:
            self._sent[number] = (tunnel_id, payload)
