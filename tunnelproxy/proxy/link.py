# SPDX-License-Identifier: Apache-2.0
"""The WebSocket between a proxy and the tunneling service.

A dead service is noticed in two ways, because a service need not answer pings. It counts as dead if its kernel has
acknowledged nothing of what was sent (the pings, if nothing else). And once it has answered a ping, silence after a
later one counts.
It does not count while this end leaves received data unread, nor while the service accepts data: the answer to the ping
then waits behind that data.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from websockets.client import ClientProtocol
from websockets.exceptions import NegotiationError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from ..net.reasons import reason
from ..net.route import Route
from ..net.socket_options import DEAD_SECONDS, SEND_BUFFER, UnansweredData
from ..net.websocket import Callbacks, WebSocket
from ..protocol.framing import MAX_PAYLOAD, MAX_WEBSOCKET_MESSAGE, Bytes
from ..protocol.session import SUBPROTOCOLS, Mode, Version, version_of
from .link_errors import LinkLost, LinkTaken, Reconnect, connect_errors_explained, explain_close, explain_rejection

__all__ = ["Link", "LinkLost", "LinkTaken", "Receiver", "Reconnect", "TunnelCredentials", "connect", "probe"]

# At the debug level, websockets logs the headers of the handshake, and so the access token.
_websockets_log = logging.getLogger("tunnelproxy.websocket")
_websockets_log.setLevel(logging.INFO)

CONNECT_SECONDS = 15.0
CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class TunnelCredentials:
    """What a proxy shows the service.

    Attributes:
        token: the access token of its end.
        client_token: sent with every handshake, so that the access token stays valid for reconnecting.
        versions: the versions of the protocol to offer, the preferred one first.
    """

    mode: Mode
    token: str = field(repr=False)
    client_token: str = field(repr=False)
    versions: tuple[Version, ...] = tuple(SUBPROTOCOLS)


class Receiver(Protocol):
    """What a link reports to: a multiplexer, which cannot be imported here because it imports this module."""

    def link_up(self, link: Link) -> None:
        """The handshake is complete."""

    def data_received(self, data: Bytes) -> None:
        """The payload of a binary WebSocket message. It may change after the call."""

    def link_writable(self) -> None:
        """The send buffer has drained after :meth:`Link.send` filled it."""

    def link_down(self) -> None:
        """The link is lost; nothing can be sent any more."""


class Link(asyncio.BufferedProtocol):
    """One WebSocket connection to the service. :func:`connect` makes it."""

    def __init__(self, route: Route, credentials: TunnelCredentials, receiver: Receiver) -> None:
        self.version = Version.V3
        """The version that the handshake agreed on: the newest that may be spoken."""
        self.channel_id = ""
        self.round_trip: float | None = None
        """Seconds that the latest answered ping took; None until one is answered."""
        self.writable = False
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception] = loop.create_future()
        """Done when the connection is lost. The result is the cause: LinkLost, TunnelRefused or TunnelClosed."""
        self._loop = loop
        self._route = route
        self._credentials = credentials
        self._receiver = receiver
        self._cause: Exception | None = None
        self._ping_sent_at: float | None = None
        self._last_heard = 0.0
        self._unanswered = UnansweredData(None)
        self._client = ClientProtocol(
            parse_uri(f"wss://{route.endpoint}/tunnel?local-proxy-mode={credentials.mode.value}"),
            subprotocols=[Subprotocol(SUBPROTOCOLS[version]) for version in credentials.versions],
            max_size=MAX_WEBSOCKET_MESSAGE,
            logger=_websockets_log,
        )
        self._websocket = WebSocket(
            self._client,
            Callbacks(
                message=self._message_received,
                event=self._event_received,
                last_sent=self._last_sent,
                too_much_unsent=self._too_much_unsent,
            ),
        )

    # What the proxy does.

    def send(self, pieces: Collection[Bytes]) -> None:
        """Send one binary WebSocket message. Check :attr:`writable` first to keep the send buffer short."""
        self._websocket.send(pieces)

    @property
    def turn(self) -> int:
        """How many bytes to send at once, so that a keystroke does not wait long behind them."""
        return MAX_PAYLOAD if self._websocket.send_room >= SEND_BUFFER else self._websocket.send_room

    def pause_reading(self) -> None:
        """Leave data in the kernel, and so slow down the far end."""
        self._websocket.pause_reading()

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`."""
        self._last_heard = self._loop.time()
        self._websocket.resume_reading()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection with a closing handshake, which the service has two seconds to complete."""
        if self._websocket.is_open:
            self._client.send_close(code, reason)
            self._websocket.flush()
        self._websocket.set_timer(CLOSE_SECONDS, self.abort)

    def fail(self, cause: Exception, code: int = 1002) -> None:
        """Close the connection because of what the peer did."""
        self._cause = self._cause or cause
        self.close(code, str(cause)[:120])

    def abort(self) -> None:
        """Close the connection at once."""
        self._websocket.abort()

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._websocket.connection_made(transport, SEND_BUFFER)
        self.writable = True
        self._unanswered = UnansweredData(transport.get_extra_info("socket"))
        request = self._client.connect()
        request.headers["access-token"] = self._credentials.token
        request.headers["client-token"] = self._credentials.client_token
        self._client.send_request(request)
        self._websocket.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._websocket.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._last_heard = self._loop.time()
        self._websocket.buffer_updated(nbytes)

    def eof_received(self) -> None:
        self._websocket.eof_received()

    def pause_writing(self) -> None:
        self.writable = False
        self._websocket.pause_writing()

    def resume_writing(self) -> None:
        self.writable = True
        self._websocket.resume_writing()
        self._last_heard = self._loop.time()
        if self.opened.done():
            self._receiver.link_writable()

    def connection_lost(self, error: Exception | None) -> None:
        self.writable = False
        self._websocket.connection_lost()
        cause = self._cause or self._explain(error)
        was_open = self.opened.done()
        if not was_open:
            self.opened.set_exception(cause)
            self.opened.exception()
        self.lost.set_result(cause)
        if was_open:
            self._receiver.link_down()

    def _explain(self, error: Exception | None) -> Exception:
        if self._client.close_rcvd is not None:
            return explain_close(self._client.close_rcvd, self._credentials.mode)
        if error is not None:
            return LinkLost(f"the connection to {self._route} broke: {reason(error)}")
        return LinkLost(f"{self._route} ended the connection")

    # What the WebSocket reports.

    def _message_received(self, data: Bytes) -> None:
        if self._cause is None:
            self._receiver.data_received(data)

    def _event_received(self, event: Event) -> None:
        if isinstance(event, Response):
            self._response_received(event)
        elif isinstance(event, Frame) and event.opcode in (Opcode.BINARY, Opcode.CONT):
            # What the service sent before it received the close.
            self._message_received(event.data)
        elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
            self.fail(LinkLost("the service sent a text message, which the protocol does not have"), 1003)
        elif isinstance(event, Frame) and event.opcode is Opcode.PONG and self._ping_sent_at is not None:
            self.round_trip = time.monotonic() - self._ping_sent_at
            self._ping_sent_at = None

    def _last_sent(self) -> None:
        # The end of the WebSocket protocol: TLS cannot close one direction only.
        self._websocket.close_transport()

    def _too_much_unsent(self) -> None:
        self._cause = self._cause or LinkLost(f"{self._route} does not read the data that is sent to it")

    # The handshake and the pings.

    def _response_received(self, response: Response) -> None:
        self.channel_id = response.headers.get("channel-id", "")
        error = self._client.handshake_exc
        if error is None and self._client.subprotocol is None:
            error = NegotiationError("no subprotocol")
        if error is not None:
            self._cause = explain_rejection(error, response, self._credentials.mode, self.channel_id)
            self.abort()
            return
        self.version = version_of(str(self._client.subprotocol))
        # websockets keeps the response as long as the connection: 3 kB.
        response.headers.clear()
        self.opened.set_result(None)
        self._receiver.link_up(self)
        self._ping()

    def _ping(self) -> None:
        if not self._websocket.is_open:
            return
        unacknowledged_for = self._unanswered.seconds()
        if unacknowledged_for > DEAD_SECONDS:
            self._cause = LinkLost(f"{self._route} has acknowledged nothing for {unacknowledged_for:.0f} s")
            self.abort()
            return
        silent_for = self._loop.time() - self._last_heard
        unanswered = self._ping_sent_at is not None and self.round_trip is not None
        if unanswered and not self._websocket.is_paused and silent_for > DEAD_SECONDS:
            self._cause = LinkLost(f"{self._route} has been silent for {silent_for:.0f} s")
            self.abort()
            return
        if not unanswered:
            self._ping_sent_at = time.monotonic()
        self._client.send_ping(b"tunnelproxy")
        self._websocket.flush()
        self._websocket.set_timer(self._route.ping_seconds, self._ping)


async def connect(route: Route, credentials: TunnelCredentials, receiver: Receiver) -> Link:
    """Connect to the service, and complete the handshake.

    Raises:
        TunnelRefused: the service rejected the handshake (HTTP 4xx); it would reject it again.
        LinkLost: anything else failed; another attempt may succeed.
    """
    link = Link(route, credentials, receiver)
    connecting = asyncio.create_task(route.dial(link))
    try:
        with connect_errors_explained(route):
            await _wait(connecting, route)
            await _wait(link.opened, route)
    except BaseException:
        connecting.cancel()
        link.abort()
        # The error's traceback holds this frame, and both futures hold the error: a cycle with the 330 kB of a
        # connection.
        del connecting, link
        raise
    return link


async def probe(route: Route) -> None:
    """Check that the data plane can be reached and that its certificate is trusted: connect, and disconnect.

    Raises:
        LinkLost: not so; the text says why.
    """
    probing = _Probe()
    connecting = asyncio.create_task(route.dial(probing))
    try:
        with connect_errors_explained(route):
            await _wait(connecting, route)
    finally:
        connecting.cancel()
        if probing.transport is not None:
            probing.transport.close()


class _Probe(asyncio.Protocol):
    """A connection that sends nothing."""

    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)


async def _wait(future: asyncio.Future[Any], route: Route) -> None:
    """Wait with a deadline. Up to Python 3.11, wait_for loses a cancellation that arrives together with the result."""
    done, _ = await asyncio.wait({future}, timeout=CONNECT_SECONDS)
    if not done:
        raise LinkLost(f"no answer from {route} within {CONNECT_SECONDS:.0f} s")
    try:
        future.result()
    finally:
        # The future holds the error, and the error's traceback holds this frame.
        del future, done
