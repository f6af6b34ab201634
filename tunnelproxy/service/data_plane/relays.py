# SPDX-License-Identifier: Apache-2.0
"""The relays of all tunnels that have a client connected."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from websockets.frames import CloseCode

from ...protocol.session import Mode
from ..limits import TokenBucket
from ..state.store import Store
from .relay import End, Relay

__all__ = ["REPLACED", "Relays"]

REPLACED = "Replaced by a newer connection"
"""Close reason, with code 1008: the same access token connected again. A client leaves the tunnel to the newer one."""

log = logging.getLogger(__name__)


class Relays:
    """Joins the clients of each tunnel, and records in the store which ends are connected.

    Args:
        bandwidth: the limit of each tunnel, in bytes per second; 0 for none.
        clock: returns seconds since the epoch.
    """

    def __init__(self, store: Store, bandwidth: int, clock: Callable[[], float]) -> None:
        self._store = store
        self._bandwidth = bandwidth
        self._clock = clock
        self._relays: dict[str, Relay] = {}

    def attach(self, end: End) -> Relay:
        """Add a client to its tunnel. An older connection of the same end is disconnected."""
        tunnel_id = end.client.tunnel.tunnel_id
        relay = self._relays.get(tunnel_id)
        if relay is None:
            relay = Relay(TokenBucket.for_bandwidth(self._bandwidth, time.monotonic) if self._bandwidth else None)
            self._relays[tunnel_id] = relay
        replaced = relay.attach(end)
        if replaced is not None:
            replaced.disconnect(CloseCode.POLICY_VIOLATION, REPLACED)
        self._store.set_connected(tunnel_id, end.client.mode, True, self._clock())
        log.info(
            "tunnel %s: %s connected, protocol %s, channel %s",
            tunnel_id,
            end.client.mode.value,
            end.client.version,
            end.client.channel_id,
            extra={"tunnel": tunnel_id, "channel": end.client.channel_id},
        )
        return relay

    def detach(self, end: End) -> None:
        """Remove a client that is gone from its tunnel."""
        tunnel_id = end.client.tunnel.tunnel_id
        log.info(
            "tunnel %s: %s disconnected, channel %s",
            tunnel_id,
            end.client.mode.value,
            end.client.channel_id,
            extra={"tunnel": tunnel_id, "channel": end.client.channel_id},
        )
        relay = self._relays.get(tunnel_id)
        if relay is None or not relay.detach(end):
            return
        self._store.set_connected(tunnel_id, end.client.mode, False, self._clock())
        if relay.is_empty:
            del self._relays[tunnel_id]

    def disconnect(self, tunnel_id: str, mode: Mode, code: CloseCode, reason: str) -> None:
        """Disconnect an end of a tunnel, if it is connected."""
        relay = self._relays.get(tunnel_id)
        end = None if relay is None else relay.end(mode)
        if end is not None:
            end.disconnect(code, reason)
