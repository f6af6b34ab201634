# SPDX-License-Identifier: Apache-2.0
"""An MQTT session that reconnects until it is cancelled.

paho-mqtt implements the protocol. It gets a connected socket, because by itself it would try a host's addresses one
after the other. Its TLS handshake blocks, so that runs in a thread. Once connected, paho is driven by the event loop,
not by its own loop, whose select() fails in a process with more than 1024 open files. Each connection has its own paho
client: the session, which must outlive a connection, is kept by the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Protocol

from paho.mqtt.client import Client, ConnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from ..names import format_host_port
from .background_tasks import spawn
from .backoff import Backoff
from .certificate_dates import explain_dates, is_of_dates, read_validity
from .happy_eyeballs import open_socket
from .mqtt_client import ConnectedSocketClient
from .reasons import handshake_reason, reason

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

__all__ = ["KEEPALIVE_SECONDS", "BrokerLogin", "MqttSession", "SessionOwner", "try_once"]

log = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 30
"""The shortest keepalive that AWS IoT Core accepts. A broker that is silent for twice as long counts as gone."""

_CONNECT_SECONDS = 15.0
_LOGIN_SECONDS = 30.0
"""For everything from looking up the broker's address until the subscription is granted."""

_LONGEST_DELAY_SECONDS = 30.0
_STABLE_SECONDS = 10.0
"""A connection that lasted this long was a success: the delay before the next attempt is short again."""

_TAKEN_OVER_TIMES = 3
_TAKEN_OVER_SECONDS = 120.0
"""Two clients with one ID disconnect each other each time they reconnect: at least once every half minute."""

_LOST = "the connection is lost"

_TICK_SECONDS = 5.0
"""How often paho checks whether it is time to probe the connection."""


@dataclass(frozen=True)
class BrokerLogin:
    """Where a broker is, and as whom to log in.

    Attributes:
        host: a name or an address, or the path of a Unix socket, which contains a ``/``; then the port is not used.
        tls: None to connect without encryption.
        user: None to log in without a user name and password.
        keepalive: seconds without traffic after which the connection is probed.
    """

    host: str
    port: int
    client_id: str
    tls: ssl.SSLContext | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive: int = KEEPALIVE_SECONDS

    @property
    def is_local(self) -> bool:
        """Whether the broker listens on a Unix socket."""
        return "/" in self.host

    def __str__(self) -> str:
        return self.host if self.is_local else format_host_port(self.host, self.port)


class SessionOwner(Protocol):
    """What a session calls, in the event loop, when something happens."""

    def connected(self) -> None:
        """The broker has accepted the login, and granted the subscription if there is one."""

    def disconnected(self) -> None:
        """The connection is lost; the session reconnects."""

    def received(self, payload: bytes) -> None:
        """A message has arrived. It is acknowledged when this returns.

        Messages that the broker kept for the client may arrive before :meth:`connected` is called.
        """

    def published(self, number: int) -> None:
        """The broker has acknowledged the message to which :meth:`MqttSession.publish` gave this number."""


class MqttSession:
    """Stays connected to a broker.

    Args:
        broker: where to connect, and as whom.
        owner: what to call when something happens.
        topic: what to subscribe to, with QoS 1; None to publish only. With a topic, the broker is asked to keep the
            session while the client is away, and to deliver later what was published meanwhile.
    """

    def __init__(self, broker: BrokerLogin, owner: SessionOwner, topic: str | None = None) -> None:
        self.broker = broker
        self._owner = owner
        self._topic = topic
        self._client: Client | None = None
        self._last_failure = ""
        self._closed_by_broker: deque[float] = deque(maxlen=_TAKEN_OVER_TIMES)
        """When the broker closed connections that it had accepted."""

    async def run(self) -> None:
        """Connect, and reconnect; runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(most=_LONGEST_DELAY_SECONDS)
        while True:
            began = loop.time()
            cause = await self._connect_once()
            if loop.time() - began > _STABLE_SECONDS:
                backoff.reset()
            delay = backoff.next_delay()
            self._log_failure(f"the MQTT broker {self.broker}: {cause}", delay)
            await asyncio.sleep(delay)

    def publish(self, topic: str, payload: bytes) -> int | None:
        """Publish a message, with QoS 1.

        Returns:
            its number, which is passed to :meth:`SessionOwner.published`; None if there is no connection now.
        """
        if self._client is None:
            return None
        return self._client.publish(topic, payload, qos=1).mid

    def _log_failure(self, failure: str, delay: float) -> None:
        """Warn of a failure once, not every half minute of a night without network."""
        level = logging.DEBUG if failure == self._last_failure else logging.WARNING
        self._last_failure = failure
        log.log(level, "%s; trying again in %.1f s", failure, delay)

    async def _connect_once(self) -> str:
        """Connect, wait until the connection is lost, and return why."""
        connection = _Connection(self.broker, self._topic, self._owner.received, self._owner.published)
        connection.begin()
        try:
            first: set[asyncio.Future[Any]] = {connection.accepted, connection.ended}
            done, _ = await asyncio.wait(first, timeout=_LOGIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return _no_answer()
            if connection.accepted.done():
                self._client = connection.client
                self._last_failure = ""
                log.info("connected to the MQTT broker %s as %s", self.broker, self.broker.client_id)
                self._owner.connected()
            cause = await connection.ended
            return self._taken_over() if connection.ended_by_broker and self._client is not None else cause
        finally:
            connection.end()
            if self._client is not None:
                self._client = None
                self._owner.disconnected()

    def _taken_over(self) -> str:
        """Why a broker closed a connection that it had accepted. MQTT 3.1.1 gives no reason, repetition does."""
        now = asyncio.get_running_loop().time()
        self._closed_by_broker.append(now)
        closed = self._closed_by_broker
        if len(closed) < _TAKEN_OVER_TIMES or now - closed[0] > _TAKEN_OVER_SECONDS:
            return _LOST
        return (
            f"it has closed {_TAKEN_OVER_TIMES} connections of {self.broker.client_id} within "
            f"{_TAKEN_OVER_SECONDS:.0f} s: probably another client uses the same client ID, and each disconnects the "
            "other: stop one of them, or give each its own client ID"
        )


async def try_once(broker: BrokerLogin, topic: str) -> str | None:
    """Connect and subscribe once, as a session does.

    A client that is connected with this client ID is disconnected, because the broker keeps the newer of two. Messages
    that wait in the session stay there: none is acknowledged.

    Returns:
        why the broker rejected the login or the subscription; None if it accepted both.
    """
    connection = _Connection(broker, topic, lambda _: None, lambda _: None, acknowledge=False)
    connection.begin()
    try:
        outcome: set[asyncio.Future[Any]] = {connection.accepted, connection.ended}
        await asyncio.wait(outcome, timeout=_LOGIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if connection.accepted.done():
            return None
        return connection.ended.result() if connection.ended.done() else _no_answer()
    finally:
        connection.end()


def _no_answer() -> str:
    return f"no answer within {_LOGIN_SECONDS:.0f} s"


class _Connection:
    """One connection to a broker.

    Args:
        topic: what to subscribe to; None to publish only.
        received: called with the payload of each message.
        published: called with the number of each published message that the broker has acknowledged.
        acknowledge: whether to acknowledge messages; the broker sends the others again on the next connection.
    """

    def __init__(
        self,
        broker: BrokerLogin,
        topic: str | None,
        received: Callable[[bytes], None],
        published: Callable[[int], None],
        *,
        acknowledge: bool = True,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        """Done when the connection is lost; the result is the reason."""
        self.ended_by_broker = False
        self._broker = broker
        self._topic = topic
        self._cause = ""
        self._probing = False
        self._opening: asyncio.Future[None] | None = None
        self._socket: SocketLike | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.client = client = ConnectedSocketClient(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            clean_session=topic is None,
            protocol=MQTTProtocolVersion.MQTTv311,
            transport="unix" if broker.is_local else "tcp",
            reconnect_on_failure=False,
            manual_ack=not acknowledge,
        )
        client.connect_timeout = _CONNECT_SECONDS
        if broker.tls is not None:
            client.tls_set_context(broker.tls)
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda client, data, message: received(bytes(message.payload))
        client.on_publish = lambda client, data, mid, code, properties: published(mid)
        client.on_socket_close = lambda client, data, sock: self._closed()
        client.on_socket_register_write = lambda client, data, sock: self._watch_writable()
        client.on_socket_unregister_write = lambda client, data, sock: self._unwatch_writable()

    def begin(self) -> None:
        """Connect. A thread does the rest that blocks; what follows runs in the event loop."""
        self._opening = spawn(
            f"connecting to the MQTT broker {self._broker}",
            self._open_connection(),
            on_failure=lambda error: self._end(reason(error)),
        )

    def end(self) -> None:
        """Send DISCONNECT, if there is a connection, and close it."""
        if self._socket is not None:
            self.client.disconnect()
            self.client.loop_write()
        if self._opening is not None:
            self._opening.cancel()
        self._end("closed here")

    async def _open_connection(self) -> None:
        broker = self._broker
        try:
            if not broker.is_local:
                opening = open_socket(broker.host, broker.port)
                self.client.connected_socket = await asyncio.wait_for(opening, _CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            self._end(reason(error))
            return
        threading.Thread(target=self._connect, name="mqtt-connect", daemon=True).start()

    def _connect(self) -> None:
        sock, address = self.client.connected_socket, None
        # A connection that the broker has already reset has no peer address.
        with contextlib.suppress(OSError):
            address = sock.getpeername() if sock is not None else None
        try:
            # paho checks the port even for a Unix socket.
            self.client.connect(self._broker.host, self._broker.port or 1, self._broker.keepalive)
        except ssl.SSLCertVerificationError as error:
            self._cause = self._certificate_refused(error, address)
        except (OSError, ValueError) as error:
            self._cause = reason(error) if self._broker.tls is None else handshake_reason(error)
        # The event loop may be closed already if this process is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._attach)

    def _certificate_refused(self, error: ssl.SSLCertVerificationError, address: Any) -> str:
        if not is_of_dates(error) or self._broker.tls is None:
            return f"its certificate cannot be verified ({error.verify_message.rstrip('.')}): check its CA certificate"
        if address is None:
            return f"its certificate {explain_dates(error.verify_code)}"
        validity = None
        with contextlib.suppress(OSError):
            again = socket.create_connection(address[:2], _CONNECT_SECONDS)
            validity = read_validity(again, self._broker.host, self._broker.tls)
        return f"its certificate {explain_dates(error.verify_code, validity)}"

    # In the event loop.

    def _attach(self) -> None:
        sock = self.client.socket()
        if sock is None or self.ended.done():
            if sock is not None:
                # Nobody waits for it any more, and the broker would disconnect a newer client with the same ID.
                sock.close()
            self._end(_LOST)
            return
        self._socket = sock
        self._loop.add_reader(sock.fileno(), self._readable)
        if self.client.want_write():
            self._watch_writable()
        self._tick()

    def _readable(self) -> None:
        self._drive(self._read)

    def _read(self) -> MQTTErrorCode:
        code = self.client.loop_read()
        # Data that TLS has already decrypted does not make the socket readable.
        while code == MQTTErrorCode.MQTT_ERR_SUCCESS and isinstance(self._socket, ssl.SSLSocket):
            if not self._socket.pending():
                break
            code = self.client.loop_read()
        return code

    def _writable(self) -> None:
        self._drive(self.client.loop_write)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)
        self._probing = True
        self._drive(self.client.loop_misc)
        self._probing = False

    def _drive(self, step: Callable[[], MQTTErrorCode]) -> None:
        try:
            code = step()
        except Exception as error:
            # paho raises many kinds of errors if a broker breaks the protocol.
            log.debug("paho-mqtt failed", exc_info=True)
            self._cause = self._cause or f"it breaks the protocol ({type(error).__name__})"
            code = MQTTErrorCode.MQTT_ERR_PROTOCOL
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._end(_LOST)

    def _watch_writable(self) -> None:
        # paho also calls this from the thread that connects, before the socket is attached.
        if self._socket is not None:
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def _unwatch_writable(self) -> None:
        if self._socket is not None:
            self._loop.remove_writer(self._socket.fileno())

    def _closed(self) -> None:
        # Also called in the thread that connects if that fails: then _connect() sets the cause.
        if self._socket is not None and self._probing:
            self._end(f"it has been silent for {2 * self._broker.keepalive} s")
        elif self._socket is not None:
            self.ended_by_broker = not self._cause
            self._end(_LOST)

    def _detach(self) -> None:
        if self._socket is not None:
            self._unwatch_writable()
            self._loop.remove_reader(self._socket.fileno())
            self._socket = None

    def _end(self, cause: str) -> None:
        self._detach()
        if self._timer is not None:
            self._timer.cancel()
        if not self.ended.done():
            self.ended.set_result(self._cause or cause)

    def _on_connect(
        self, client: Client, data: Any, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._cause = f"it refuses {self._broker.user or self._broker.client_id}: {code}"
        elif self._topic is None:
            self._set_accepted()
        else:
            client.subscribe(self._topic, qos=1)

    def _on_subscribe(
        self, client: Client, data: Any, mid: int, codes: list[ReasonCode], properties: Properties | None
    ) -> None:
        if any(code.is_failure for code in codes):
            self._cause = f"it does not let {self._broker.client_id} subscribe to {self._topic}; see its access rules"
            client.disconnect()
        else:
            self._set_accepted()

    def _set_accepted(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)
