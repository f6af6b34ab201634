# SPDX-License-Identifier: Apache-2.0
"""The TLS port through which things reach the embedded MQTT broker.

Mosquitto has no deadline for handshakes: an idle connection keeps a descriptor for a minute and a half, and once its
descriptors are used up, Mosquitto rejects everyone. So the service accepts the connections, under the same limits as on
its other ports, and Mosquitto sees a connection, over a Unix socket, only after its client has begun to send. The
connection counts as half-open until the broker has accepted the client: a rejected client that does not hang up is cut
off like any other half-open connection.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from ...net.background_tasks import spawn
from ...net.connections import Reading
from ..events import EventHandler
from ..limits import Limits, TokenBucket
from ..listening.bound_socket import bind
from ..listening.listener import Listener

__all__ = ["MqttListener"]

_BYTES_PER_SECOND = 64 * 1024
"""Per thing. An agent sends a few bytes every half minute; a flooding device gets a bounded share."""

_CONNACK = 0x20
_SUCCESS = 0

log = logging.getLogger(__name__)


class MqttListener:
    """A listening socket, and the connections that it relays to the broker.

    Args:
        host: the address or name to listen on.
        port: the port; 0 for any free one.
        broker: the path of the broker's Unix socket.

    Raises:
        ServiceError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, broker: Path) -> None:
        self._broker = broker
        # No fallback to another port: the agents are configured with this one.
        self._socket = bind(host, port, "--mqtt-port")
        self.port: int = self._socket.getsockname()[1]
        self._listener: Listener | None = None
        self._relays: set[_Relay] = set()

    def open(self, context: ssl.SSLContext, limits: Limits, notify: EventHandler) -> None:
        """Accept connections.

        Args:
            context: the TLS context.
            limits: limits the connections, and the duration of a handshake, including that of MQTT.
            notify: called with each connection that is cut off.
        """
        self._listener = Listener(self._make_relay, context, limits, notify)
        self._listener.open(self._socket)

    def close(self) -> None:
        """Close all connections and the port."""
        if self._listener is not None:
            self._listener.close()
        for relay in list(self._relays):
            relay.abort()
        self._socket.close()

    def _make_relay(self) -> _Relay:
        return _Relay(self._broker, self._settle, self._relays)

    def _settle(self, relay: _Relay) -> None:
        if self._listener is not None:
            self._listener.settle(relay)


class _Relay(asyncio.Protocol):
    """The decrypted connection of a thing, joined to a connection to the broker."""

    def __init__(self, path: Path, accepted: Callable[[_Relay], None], relays: set[_Relay]) -> None:
        self._path = path
        self._accepted = accepted
        self._is_accepted = False
        self._relays = relays
        self._bandwidth = TokenBucket.for_bandwidth(_BYTES_PER_SECOND, asyncio.get_running_loop().time)
        self._unsent = bytearray()
        self._connecting: asyncio.Task[None] | None = None
        # The reasons why nothing is read from the thing at the moment.
        self._pauses: set[str] = set()
        self._bandwidth_timer: asyncio.TimerHandle | None = None
        self._reading: Reading
        self.thing: asyncio.Transport | None = None
        self.broker: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.thing = cast(asyncio.Transport, transport)
        self._reading = Reading(self.thing)
        self._relays.add(self)

    def data_received(self, data: bytes) -> None:
        seconds = self._bandwidth.take(len(data))
        if seconds:
            self.pause("bandwidth")
            # A single timer, for the latest debt: one for an earlier read would end the pause too soon.
            if self._bandwidth_timer is not None:
                self._bandwidth_timer.cancel()
            self._bandwidth_timer = asyncio.get_running_loop().call_later(seconds, self.resume, "bandwidth")
        if self.broker is not None:
            self.broker.write(data)
            return
        self._unsent += data
        if self._connecting is None:
            self.pause("connecting")
            self._connecting = spawn("connecting a thing to the MQTT broker", self._connect())

    def eof_received(self) -> None:
        """Close the connection to the broker together with the transport."""

    def connection_lost(self, error: Exception | None) -> None:
        self._relays.discard(self)
        self.thing = None
        if self._bandwidth_timer is not None:
            self._bandwidth_timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self.broker is not None:
            self.broker.close()

    def pause_writing(self) -> None:
        if self.broker is not None:
            self.broker.pause_reading()

    def resume_writing(self) -> None:
        if self.broker is not None:
            self.broker.resume_reading()

    def pause(self, cause: str) -> None:
        """Stop reading from the thing until :meth:`resume` has been called for this cause and all others."""
        self._pauses.add(cause)
        self._reading.pause()

    def resume(self, cause: str) -> None:
        """End a :meth:`pause`."""
        if cause in self._pauses:
            self._pauses.remove(cause)
            if not self._pauses:
                self._reading.resume()

    def from_broker(self, data: bytes) -> None:
        """Relay data from the broker."""
        if self.thing is not None:
            self.thing.write(data)
            if not self._is_accepted and _is_accepting(data):
                self._is_accepted = True
                self._accepted(self)

    def abort(self) -> None:
        """Abort both connections."""
        for transport in (self.thing, self.broker):
            if transport is not None:
                transport.abort()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self.broker, _ = await loop.create_unix_connection(lambda: _BrokerSide(self), str(self._path))
        except OSError as error:
            log.debug("the MQTT broker accepts no connection: %s", error)
            if self.thing is not None:
                self.thing.abort()
            return
        if self.thing is None:
            self.broker.abort()
            return
        self.broker.write(bytes(self._unsent))
        self._unsent.clear()
        self.resume("connecting")


class _BrokerSide(asyncio.Protocol):
    def __init__(self, relay: _Relay) -> None:
        self._relay = relay

    def data_received(self, data: bytes) -> None:
        self._relay.from_broker(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._relay.thing is not None:
            # close(), not abort(): the broker's last packet contains the reason why it rejects a thing.
            self._relay.thing.close()

    def pause_writing(self) -> None:
        self._relay.pause("broker")

    def resume_writing(self) -> None:
        self._relay.resume("broker")


def _is_accepting(data: bytes) -> bool:
    """Whether the broker's first packet accepts the client: a CONNACK with the code for success.

    Source: MQTT 3.1.1 and MQTT 5, section 3.2.
    """
    # The type, the length (with another byte while the top bit is set), the flags, and the code.
    length = next((place for place in range(1, len(data)) if data[place] < 0x80), len(data))
    return data[:1] == bytes((_CONNACK,)) and data[length + 2 : length + 3] == bytes((_SUCCESS,))
