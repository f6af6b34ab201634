# SPDX-License-Identifier: Apache-2.0
"""The TLS port by which things reach the embedded MQTT broker.

Mosquitto has no deadline for a handshake: whoever connects and says nothing keeps a place for a minute and a half, and
when its descriptors are used up, it refuses everybody. So strangers stay outside: the service accepts the connections,
by the same rules as on its other ports, and Mosquitto sees one only when its client has begun to speak, by a Unix
socket. A connection counts as half-open until the broker has let its client in: one that is refused, and does not hang
up, is cut off with the others.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from ...net.background_tasks import spawn
from ...net.connections import Reading
from ..errors import ServiceError
from ..events import EventHandler
from ..limits import Limits, Pace
from ..listener import Listener

__all__ = ["MqttListener"]

_BACKLOG = 1024
_BYTES_PER_SECOND = 64 * 1024
"""Of one thing. An agent sends a few bytes in half a minute; a device that floods takes a bounded share."""

_CONNACK = 0x20
_SUCCESS = 0

_log = logging.getLogger(__name__)


class MqttListener:
    """A listening socket, and the connections that it passes on to the broker.

    Args:
        host: the address or name to listen on.
        port: the port; 0 for any.
        broker: the path of the broker's Unix socket.

    Raises:
        ServiceError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, broker: Path) -> None:
        self._broker = broker
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._door: Listener | None = None
        self._relays: set[_Relay] = set()

    def open(self, context: ssl.SSLContext, limits: Limits, notify: EventHandler) -> None:
        """Accept connections.

        Args:
            context: for TLS.
            limits: how many connections, and how long a handshake may take, that of MQTT included.
            notify: is told of every connection that is cut off.
        """
        self._door = Listener(self._make_relay, context, limits, notify)
        self._door.open(self._socket)

    def close(self) -> None:
        """End all connections, and give the port back."""
        if self._door is not None:
            self._door.close()
        for relay in list(self._relays):
            relay.abort()
        self._socket.close()

    def _make_relay(self) -> _Relay:
        return _Relay(self._broker, self._settle, self._relays)

    def _settle(self, relay: _Relay) -> None:
        if self._door is not None:
            self._door.settle(relay)


class _Relay(asyncio.Protocol):
    """One thing's connection, decrypted, and the broker's side of it."""

    def __init__(self, path: Path, let_in: Callable[[_Relay], None], all_of_them: set[_Relay]) -> None:
        self._path = path
        self._let_in = let_in
        self._is_let_in = False
        self._all = all_of_them
        self._pace = Pace(_BYTES_PER_SECOND, asyncio.get_running_loop().time)
        self._before = bytearray()
        self._connecting: asyncio.Task[None] | None = None
        # Why nothing is read from the thing now.
        self._held: set[str] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._reading: Reading
        self.thing: asyncio.Transport | None = None
        self.broker: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.thing = cast(asyncio.Transport, transport)
        self._reading = Reading(self.thing)
        self._all.add(self)

    def data_received(self, data: bytes) -> None:
        pause = self._pace.take(len(data))
        if pause:
            self.hold("pace")
            # One timer, for the latest debt: that of an earlier read would end the rest too soon.
            if self._rest is not None:
                self._rest.cancel()
            self._rest = asyncio.get_running_loop().call_later(pause, self.let_go, "pace")
        if self.broker is not None:
            self.broker.write(data)
            return
        self._before += data
        if self._connecting is None:
            self.hold("broker")
            self._connecting = spawn("joining a thing to the MQTT broker", self._join())

    def eof_received(self) -> None:
        """The transport closes, which ends the broker's side too."""

    def connection_lost(self, error: Exception | None) -> None:
        self._all.discard(self)
        self.thing = None
        if self._rest is not None:
            self._rest.cancel()
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

    def hold(self, cause: str) -> None:
        """Read nothing from the thing until :meth:`let_go` is called for this cause and all others."""
        self._held.add(cause)
        self._reading.pause()

    def let_go(self, cause: str) -> None:
        """A cause of :meth:`hold` is gone."""
        if cause in self._held:
            self._held.remove(cause)
            if not self._held:
                self._reading.resume()

    def from_broker(self, data: bytes) -> None:
        """Pass the broker's words on."""
        if self.thing is not None:
            self.thing.write(data)
            if not self._is_let_in and _is_welcome(data):
                self._is_let_in = True
                self._let_in(self)

    def abort(self) -> None:
        """End both sides at once."""
        for transport in (self.thing, self.broker):
            if transport is not None:
                transport.abort()

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self.broker, _ = await loop.create_unix_connection(lambda: _BrokerSide(self), str(self._path))
        except OSError as error:
            _log.debug("the MQTT broker takes no connection: %s", error)
            if self.thing is not None:
                self.thing.abort()
            return
        if self.thing is None:
            self.broker.abort()
            return
        self.broker.write(bytes(self._before))
        self._before.clear()
        self.let_go("broker")


class _BrokerSide(asyncio.Protocol):
    def __init__(self, relay: _Relay) -> None:
        self._relay = relay

    def data_received(self, data: bytes) -> None:
        self._relay.from_broker(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._relay.thing is not None:
            # Not before the last words are out: they say why a thing is refused.
            self._relay.thing.close()

    def pause_writing(self) -> None:
        self._relay.hold("slow")

    def resume_writing(self) -> None:
        self._relay.let_go("slow")


def _is_welcome(data: bytes) -> bool:
    """Whether a broker's first words let the client in: a CONNACK that says success.

    Source: MQTT 3.1.1 and MQTT 5, section 3.2.
    """
    # The kind, the length (which takes more than a byte where the last bit is set), flags, and the reason.
    length = next((place for place in range(1, len(data)) if data[place] < 0x80), len(data))
    return data[:1] == bytes((_CONNACK,)) and data[length + 2 : length + 3] == bytes((_SUCCESS,))


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # Not another port: the agents look for the broker at this one.
        raise ServiceError(
            f"cannot listen on port {port} of {host} for MQTT ({error.strerror}); give --mqtt-port another one"
        ) from error
