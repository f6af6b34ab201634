# SPDX-License-Identifier: Apache-2.0
"""A lasting connection to an MQTT broker: made, and made again, until cancelled.

paho-mqtt does the protocol. It is given a socket that is connected, since it would try a host's addresses one after
the other. The TLS handshake blocks in it, so that is done in a thread; once connected, paho is driven by the event
loop, not by its own loop, whose select() fails in a process with more than 1024 files. Each connection has a paho
client of its own: what must outlive a connection (the session) is with the broker.
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
from .mqtt_client import ClientOfSocket
from .reasons import handshake_reason, reason

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

__all__ = ["Broker", "MqttSession", "SessionOwner", "try_once"]

log = logging.getLogger(__name__)

CONNECT_SECONDS = 15.0
LET_IN_SECONDS = 30.0
"""For all from looking up the broker's address to its leave to subscribe."""

_NO_ANSWER = f"no answer within {LET_IN_SECONDS:.0f} s"

MOST_DELAY_SECONDS = 30.0
STABLE_SECONDS = 10.0
"""A connection that lasted this long was a success: the next attempt after it is quick again."""

TAKEN_OVER_TIMES = 3
TAKEN_OVER_SECONDS = 120.0
"""Of two clients with one ID, each is disconnected as often as the other returns: after half a minute at most."""

_LOST = "the connection is lost"

KEEPALIVE_SECONDS = 30
"""The least that AWS IoT Core takes; a broker that is silent for twice as long is given up."""

# How often paho looks whether it is time to probe the connection.
_TICK_SECONDS = 5.0


@dataclass(frozen=True)
class Broker:
    """Where a broker is, and as whom to join it.

    Attributes:
        host: its name or address; or the path of a Unix socket, known by its ``/``. Then the port means nothing.
        tls: None for a connection without encryption.
        keepalive: seconds of silence after which the connection is probed.
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
        """Whether it is at a Unix socket."""
        return "/" in self.host

    def __str__(self) -> str:
        return self.host if self.is_local else format_host_port(self.host, self.port)


class SessionOwner(Protocol):
    """Whom a session tells what happens, in the event loop."""

    def connected(self) -> None:
        """The broker has let the client in, and granted its subscription if it has one."""

    def disconnected(self) -> None:
        """The connection is gone; another will be made."""

    def received(self, payload: bytes) -> None:
        """A message has come. The broker is told so when this returns.

        What the broker has kept for the client may come before :meth:`connected`.
        """

    def published(self, number: int) -> None:
        """The broker has taken the message that :meth:`MqttSession.publish` gave this number."""


class MqttSession:
    """Stays connected to a broker.

    Args:
        topic: what to subscribe to, with QoS 1; None to publish only. With a topic the broker is asked to keep the
            session while the client is away, and to deliver then what was published meanwhile.
    """

    def __init__(self, broker: Broker, owner: SessionOwner, topic: str | None = None) -> None:
        self.broker = broker
        self._owner = owner
        self._topic = topic
        self._client: Client | None = None
        self._last_complaint = ""
        self._let_in_and_ended: deque[float] = deque(maxlen=TAKEN_OVER_TIMES)
        """When the broker has ended connections that it had let in."""

    async def run(self) -> None:
        """Connect, and connect again; ends when cancelled only."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(most=MOST_DELAY_SECONDS)
        while True:
            began = loop.time()
            cause = await self._converse()
            if loop.time() - began > STABLE_SECONDS:
                backoff.reset()
            delay = backoff.next_delay()
            self._complain(f"the MQTT broker {self.broker}: {cause}", delay)
            await asyncio.sleep(delay)

    def publish(self, topic: str, payload: bytes) -> int | None:
        """Hand a message to the broker, with QoS 1.

        Returns:
            Its number, which :meth:`SessionOwner.published` gets; None where there is no connection now.
        """
        if self._client is None:
            return None
        return self._client.publish(topic, payload, qos=1).mid

    def _complain(self, complaint: str, delay: float) -> None:
        """Once, not every half a minute of a night without network."""
        level = logging.DEBUG if complaint == self._last_complaint else logging.WARNING
        self._last_complaint = complaint
        log.log(level, "%s; trying again in %.1f s", complaint, delay)

    async def _converse(self) -> str:
        """Hold one connection, and return why it ended."""
        conversation = _Conversation(self.broker, self._owner, self._topic)
        conversation.begin()
        try:
            first: set[asyncio.Future[Any]] = {conversation.let_in, conversation.ended}
            done, _ = await asyncio.wait(first, timeout=LET_IN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return _NO_ANSWER
            if conversation.let_in.done():
                self._client = conversation.client
                self._last_complaint = ""
                log.info("connected to the MQTT broker %s as %s", self.broker, self.broker.client_id)
                self._owner.connected()
            cause = await conversation.ended
            return self._taken_over() if conversation.ended_by_broker and self._client is not None else cause
        finally:
            conversation.end()
            if self._client is not None:
                self._client = None
                self._owner.disconnected()

    def _taken_over(self) -> str:
        """Why a broker ended a connection that it had let in. MQTT 3.1.1 does not tell: a habit does."""
        now = asyncio.get_running_loop().time()
        self._let_in_and_ended.append(now)
        ended = self._let_in_and_ended
        if len(ended) < TAKEN_OVER_TIMES or now - ended[0] > TAKEN_OVER_SECONDS:
            return _LOST
        return (
            f"it has ended {TAKEN_OVER_TIMES} connections of {self.broker.client_id} within "
            f"{TAKEN_OVER_SECONDS:.0f} s: most likely another client uses the same client ID, and each disconnects "
            "the other: stop one of them, or give each a client ID of its own"
        )


async def try_once(broker: Broker, topic: str) -> str | None:
    """Connect and subscribe once, as a session would.

    Whoever is connected with this client ID is disconnected, as of two the broker keeps the newer. What waits in the
    session stays there: nothing that comes is confirmed.

    Returns:
        Why the broker did not let the client in; None if it did.
    """
    conversation = _Conversation(broker, _Deaf(), topic, confirm=False)
    conversation.begin()
    try:
        outcome: set[asyncio.Future[Any]] = {conversation.let_in, conversation.ended}
        await asyncio.wait(outcome, timeout=LET_IN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if conversation.let_in.done():
            return None
        return conversation.ended.result() if conversation.ended.done() else _NO_ANSWER
    finally:
        conversation.end()


class _Deaf:
    """An owner who acts upon nothing."""

    def connected(self) -> None:
        pass

    def disconnected(self) -> None:
        pass

    def received(self, payload: bytes) -> None:
        pass

    def published(self, number: int) -> None:
        pass


class _Conversation:
    """One connection.

    Args:
        confirm: whether to confirm what comes; what was not confirmed comes again with the next connection.
    """

    def __init__(self, broker: Broker, owner: SessionOwner, topic: str | None, *, confirm: bool = True) -> None:
        self._loop = asyncio.get_running_loop()
        self.let_in: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        """Done when the connection is gone; the result says why."""
        self.ended_by_broker = False
        self._broker = broker
        self._owner = owner
        self._topic = topic
        self._cause = ""
        self._probing = False
        self._dialling: asyncio.Future[None] | None = None
        self._socket: SocketLike | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.client = client = ClientOfSocket(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            clean_session=topic is None,
            protocol=MQTTProtocolVersion.MQTTv311,
            transport="unix" if broker.is_local else "tcp",
            reconnect_on_failure=False,
            manual_ack=not confirm,
        )
        client.connect_timeout = CONNECT_SECONDS
        if broker.tls is not None:
            client.tls_set_context(broker.tls)
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda client, data, message: owner.received(bytes(message.payload))
        client.on_publish = lambda client, data, mid, code, properties: owner.published(mid)
        client.on_socket_close = lambda client, data, sock: self._closed()
        client.on_socket_register_write = lambda client, data, sock: self._watch_writable()
        client.on_socket_unregister_write = lambda client, data, sock: self._unwatch_writable()

    def begin(self) -> None:
        """Connect, and have a thread do the rest that blocks; what follows runs in the event loop."""
        self._dialling = spawn(
            f"connecting to the MQTT broker {self._broker}",
            self._dial(),
            on_failure=lambda error: self._end(reason(error)),
        )

    def end(self) -> None:
        """Say good-bye, if there is a connection."""
        if self._socket is not None:
            self.client.disconnect()
            self.client.loop_write()
        if self._dialling is not None:
            self._dialling.cancel()
        self._end("ended here")

    async def _dial(self) -> None:
        broker = self._broker
        try:
            if not broker.is_local:
                opening = open_socket(broker.host, broker.port)
                self.client.connected_socket = await asyncio.wait_for(opening, CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            self._end(reason(error))
            return
        threading.Thread(target=self._connect, name="mqtt-connect", daemon=True).start()

    def _connect(self) -> None:
        sock, address = self.client.connected_socket, None
        # One that the broker has reset already has none.
        with contextlib.suppress(OSError):
            address = sock.getpeername() if sock is not None else None
        try:
            # paho checks the port of a Unix socket, too.
            self.client.connect(self._broker.host, self._broker.port or 1, self._broker.keepalive)
        except ssl.SSLCertVerificationError as error:
            self._cause = self._certificate_refused(error, address)
        except (OSError, ValueError) as error:
            self._cause = reason(error) if self._broker.tls is None else handshake_reason(error)
        # The loop may be closed already, when this process ends.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._attach)

    def _certificate_refused(self, error: ssl.SSLCertVerificationError, address: Any) -> str:
        if not is_of_dates(error) or self._broker.tls is None:
            return f"its certificate cannot be verified ({error.verify_message.rstrip('.')}): check the authority"
        if address is None:
            return f"its certificate {explain_dates(error.verify_code)}"
        validity = None
        with contextlib.suppress(OSError):
            again = socket.create_connection(address[:2], CONNECT_SECONDS)
            validity = read_validity(again, self._broker.host, self._broker.tls)
        return f"its certificate {explain_dates(error.verify_code, validity)}"

    # In the event loop.

    def _attach(self) -> None:
        sock = self.client.socket()
        if sock is None or self.ended.done():
            if sock is not None:
                # Nobody waits for it any more, and the broker would take it for the newer client of the same ID.
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
        # What TLS has decrypted already makes no socket readable.
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
            # paho raises errors of many kinds about what no broker should send.
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
        # In the thread that connects, when that fails: then it tells why by itself.
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
            self._let_in()
        else:
            client.subscribe(self._topic, qos=1)

    def _on_subscribe(
        self, client: Client, data: Any, mid: int, codes: list[ReasonCode], properties: Properties | None
    ) -> None:
        if any(code.is_failure for code in codes):
            self._cause = f"it does not let {self._broker.client_id} subscribe to {self._topic}; see its access rules"
            client.disconnect()
        else:
            self._let_in()

    def _let_in(self) -> None:
        if not self.let_in.done():
            self.let_in.set_result(None)
