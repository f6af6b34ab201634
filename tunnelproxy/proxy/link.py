# SPDX-License-Identifier: Apache-2.0
"""The WebSocket between a proxy and the tunneling service.

websockets' sans-I/O protocol inside an asyncio protocol class, and bulk data beside it (see protocol/websocket.py):
what arrives goes to the receiver in the same turn of the event loop, without a task or a queue in between.

A dead service is found in two ways, because a service need not answer pings: the kernel gives up when what was sent
(the pings, if nothing else) stays unacknowledged, and, once a service has answered one ping, silence after a later one
counts. It does not while this end leaves unread what comes, nor while the service takes what is sent: then the answer
waits behind the data.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Protocol, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, NegotiationError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from ..errors import TunnelClosed, TunnelRefused
from ..net import receive_buffer
from ..net.certificate_dates import NOT_YET_VALID, explain_dates, is_of_dates
from ..net.connections import Reading
from ..net.endpoint import Endpoint
from ..net.http_proxy import HttpProxyError
from ..net.reasons import reason
from ..net.route import CertificateRefused, Route
from ..net.socket_options import DEAD_SECONDS, SEND_BUFFER, ReceiveBuffer, tune
from ..protocol.framing import MAX_WEBSOCKET_MESSAGE, Bytes
from ..protocol.session import SUBPROTOCOLS, Mode, Version
from ..protocol.websocket import MessageReader, encode_binary

__all__ = ["Link", "LinkLost", "LinkTaken", "Receiver", "Reconnect", "TunnelCredentials", "connect", "probe"]

log = logging.getLogger(__name__)

# websockets logs the headers of the handshake, and so the access token, at the debug level.
_websocket_log = logging.getLogger("tunnelproxy.websocket")
_websocket_log.setLevel(logging.INFO)

CONNECT_SECONDS = 15.0
CLOSE_SECONDS = 2.0

SEND_LIMIT = 2 * 1024 * 1024
"""Bytes that may wait in this process in any case: answers to pings and to starts go out unasked."""

_OF_ANOTHER_NAME = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

_CAUSES = (
    # The tunneling service says the cause in a header of ours; AWS says it in the body.
    ("token-used", "previously used"),
    ("wrong-mode", "mode"),
    ("tunnel-closed", "closed"),
    ("tunnel-closed", "expired"),
    ("token-unknown", "access token"),
)
_REMEDIES = {
    "token-used": "the access token was used before, by another proxy; rotate it and use the new one",
    "token-unknown": "the service does not know the access token: it was rotated, belongs to another region, or is "
    "not whole; rotate it and use the new one",
    "wrong-mode": "the access token is for the other end of the tunnel; use the {mode} access token here",
    "tunnel-closed": "the tunnel is closed or has expired; open another",
    "bad-request": "the service does not accept the request",
    "refused": "the service refuses the connection: is this the region (or endpoint) where the tunnel was opened?",
}


class LinkLost(Exception):
    """The WebSocket broke, or could not be made; another attempt may succeed.

    Attributes:
        permanent: whether another attempt will fail likewise until somebody changes something.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class LinkTaken(LinkLost):
    """Another proxy has connected with the same tokens, and has the tunnel now. Coming back would take it away."""


class Reconnect(LinkLost):
    """The WebSocket was closed on purpose, and is to be made anew at once."""


@dataclass(frozen=True)
class TunnelCredentials:
    """What a proxy needs to be let in.

    Attributes:
        token: the access token of its end.
        client_token: sent with every connect, so that the access token stays good for reconnecting.
        versions: the versions of the protocol to offer, the preferred one first.
    """

    mode: Mode
    token: str = field(repr=False)
    client_token: str = field(repr=False)
    versions: tuple[Version, ...] = tuple(SUBPROTOCOLS)


class Receiver(Protocol):
    """Whom a link tells what happens."""

    def link_up(self, link: Link) -> None:
        """The handshake succeeded."""

    def data_received(self, data: Bytes) -> None:
        """The payload of a binary WebSocket message, or a part of it."""

    def link_writable(self) -> None:
        """The send buffer has drained after :meth:`Link.send` filled it."""

    def link_down(self) -> None:
        """The link is gone; nothing can be sent any more."""


class Link(asyncio.BufferedProtocol):
    """One WebSocket connection to the service. Made by :func:`connect`."""

    def __init__(self, route: Route, access: TunnelCredentials, receiver: Receiver) -> None:
        self.version = Version.V3
        """What the handshake agreed on: the newest version that may be spoken."""
        self.channel_id = ""
        self.round_trip: float | None = None
        """Seconds that the latest ping took, or None while none was answered."""
        self.writable = False
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception] = loop.create_future()
        """Done when the connection is gone; the result says why: LinkLost, TunnelRefused or TunnelClosed."""
        self._loop = loop
        self._route = route
        self._access = access
        self._receiver = receiver
        self._cause: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._ping_sent_at: float | None = None
        self._last_heard = 0.0
        self._reading: Reading | None = None
        self._receive_buffer = ReceiveBuffer(None)
        self._timer: asyncio.TimerHandle | None = None
        self._websocket = ClientProtocol(
            parse_uri(f"wss://{route.endpoint}/tunnel?local-proxy-mode={access.mode.value}"),
            subprotocols=[Subprotocol(SUBPROTOCOLS[version]) for version in access.versions],
            max_size=MAX_WEBSOCKET_MESSAGE,
            logger=_websocket_log,
        )
        self._reader = MessageReader(self._websocket, self._message_received, self._process)

    # What the proxy does.

    def send(self, pieces: Collection[Bytes]) -> None:
        """Send one binary WebSocket message. Check :attr:`writable` first to keep the buffer small."""
        if self._websocket.state is State.OPEN and self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_binary(pieces, masked=True))
            self._limit_what_waits(self._transport)

    def pause_reading(self) -> None:
        """Leave what the far end sends in the kernel, and so with the far end."""
        if self._reading is not None:
            self._reading.pause()

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`."""
        if self._reading is not None:
            self._last_heard = self._loop.time()
            self._reading.resume()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End the connection with a closing handshake, which the service has two seconds to complete."""
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(code, reason)
            self._flush()
        self._restart_timer(CLOSE_SECONDS, self.abort)

    def fail(self, cause: Exception, code: int = 1002) -> None:
        """End the connection because of what the peer did."""
        self._cause = self._cause or cause
        self.close(code, str(cause)[:120])

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self._reader.release()

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=SEND_BUFFER, low=SEND_BUFFER // 4)
        self._reading = Reading(self._transport)
        self.writable = True
        sock = self._transport.get_extra_info("socket")
        tune(sock)
        self._receive_buffer = ReceiveBuffer(sock)
        request = self._websocket.connect()
        request.headers["access-token"] = self._access.token
        request.headers["client-token"] = self._access.client_token
        self._websocket.send_request(request)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return receive_buffer.behind(self._reader.rest)

    def buffer_updated(self, nbytes: int) -> None:
        self._last_heard = self._loop.time()
        self._receive_buffer.took(nbytes)
        self._reader.feed(receive_buffer.received(len(self._reader.rest) + nbytes))

    def eof_received(self) -> None:
        self._websocket.receive_eof()
        self._process()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._last_heard = self._loop.time()
        if self.opened.done():
            self._receiver.link_writable()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.writable = False
        self._reader.release()
        self._websocket.receive_eof()
        cause = self._cause or self._explain(error)
        was_open = self.opened.done()
        if not was_open:
            self.opened.set_exception(cause)
            self.opened.exception()
        self.lost.set_result(cause)
        if was_open:
            self._receiver.link_down()

    def _explain(self, error: Exception | None) -> Exception:
        close = self._websocket.close_rcvd
        if close is not None:
            words = f"the service closed the connection ({close.code} {close.reason})".replace(" )", ")")
            if "closed" in close.reason.lower() or "expired" in close.reason.lower():
                return TunnelClosed(close.reason)
            if "replaced" in close.reason.lower():
                return LinkTaken(
                    f"another proxy has connected as the {self._access.mode.value} of this tunnel with the same access "
                    "token and client token, and has taken this one's place: stop one of them, or give each its own "
                    "tunnel"
                )
            return LinkLost(words)
        if error is not None:
            return LinkLost(f"the connection to {self._route} broke: {reason(error)}")
        return LinkLost(f"{self._route} ended the connection")

    # The WebSocket protocol.

    def _process(self) -> None:
        for event in self._websocket.events_received():
            if isinstance(event, Response):
                self._answered(event)
            elif isinstance(event, Frame):
                self._frame_received(event)
        self._flush()

    def _answered(self, response: Response) -> None:
        self.channel_id = response.headers.get("channel-id", "")
        refusal = self._websocket.handshake_exc
        if refusal is None and self._websocket.subprotocol is None:
            refusal = NegotiationError("no subprotocol")
        if refusal is not None:
            self._cause = _explain_refusal(refusal, response, self._access.mode, self.channel_id)
            self.abort()
            return
        self.version = next(v for v, name in SUBPROTOCOLS.items() if name == self._websocket.subprotocol)
        # websockets keeps the response as long as the connection: 3 kB.
        response.headers.clear()
        self.opened.set_result(None)
        self._receiver.link_up(self)
        self._ping()

    def _message_received(self, data: Bytes) -> None:
        if self._cause is None:
            self._receiver.data_received(data)

    def _frame_received(self, frame: Frame) -> None:
        # A frame in hand: data keeps its order, wherever the WebSocket messages begin and end.
        if frame.opcode in (Opcode.BINARY, Opcode.CONT):
            self._message_received(frame.data)
        elif frame.opcode is Opcode.TEXT:
            self.fail(LinkLost("the service sent a text message, which the protocol does not have"), 1003)
        elif frame.opcode is Opcode.PONG and self._ping_sent_at is not None:
            self.round_trip = time.monotonic() - self._ping_sent_at
            self._ping_sent_at = None

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        for data in self._websocket.data_to_send():
            if data:
                transport.write(data)
            else:
                # The end of what the WebSocket protocol wants to send; TLS cannot close one direction only.
                transport.close()
        self._limit_what_waits(transport)

    def _limit_what_waits(self, transport: asyncio.Transport) -> None:
        if transport.get_write_buffer_size() > SEND_LIMIT:
            self._cause = self._cause or LinkLost(f"{self._route} does not read what it is sent")
            transport.abort()

    def _ping(self) -> None:
        if self._websocket.state is not State.OPEN:
            return
        now = self._loop.time()
        awaited = self._ping_sent_at is not None and self.round_trip is not None
        reading = self._reading is not None and not self._reading.paused
        if reading and awaited and now - self._last_heard > DEAD_SECONDS:
            self._cause = LinkLost(f"{self._route} has been silent for {now - self._last_heard:.0f} s")
            self.abort()
            return
        if not awaited:
            self._ping_sent_at = time.monotonic()
        self._websocket.send_ping(b"tunnelproxy")
        self._flush()
        self._restart_timer(self._route.ping_seconds, self._ping)

    def _restart_timer(self, seconds: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, action)


async def connect(route: Route, access: TunnelCredentials, receiver: Receiver) -> Link:
    """Connect to the service and shake hands.

    Raises:
        TunnelRefused: the service refused (HTTP 4xx); it would refuse again.
        LinkLost: anything else went wrong; another attempt may succeed.
    """
    link = Link(route, access, receiver)
    connecting = asyncio.create_task(route.dial(link))
    try:
        with _explained(route):
            await _wait(connecting, route)
            await _wait(link.opened, route)
    except BaseException:
        connecting.cancel()
        link.abort()
        # The error's traceback holds this frame, and both futures the error: a circle with the 330 kB of a connection.
        del connecting, link
        raise
    return link


async def probe(route: Route) -> None:
    """See that there is a way to the data plane, and that its certificate is trusted: connect, and hang up.

    Raises:
        LinkLost: there is none; the text says why.
    """
    probing = _Probe()
    connecting = asyncio.create_task(route.dial(probing))
    try:
        with _explained(route):
            await _wait(connecting, route)
    finally:
        connecting.cancel()
        if probing.transport is not None:
            probing.transport.close()


class _Probe(asyncio.Protocol):
    """What has nothing to say on its connection."""

    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)


@contextmanager
def _explained(route: Route) -> Iterator[None]:
    """Make sentences of the errors of a connection that does not come about."""
    try:
        yield
    except HttpProxyError as error:
        raise LinkLost(str(error), permanent=error.permanent) from None
    except CertificateRefused as refused:
        # A device's clock is set soon after it has started.
        permanent = refused.error.verify_code != NOT_YET_VALID
        raise LinkLost(_explain_certificate(refused, route.endpoint), permanent=permanent) from None
    except ConnectionRefusedError as error:
        raise LinkLost(f"cannot reach {route}: {reason(error)}; is the tunneling service running there?") from None
    except OSError as error:
        raise LinkLost(f"cannot reach {route}: {reason(error)}") from None


async def _wait(future: asyncio.Future[Any], route: Route) -> None:
    """Wait with a deadline. Not with wait_for: up to Python 3.11 it loses a cancellation that comes with the result."""
    done, _ = await asyncio.wait({future}, timeout=CONNECT_SECONDS)
    if not done:
        raise LinkLost(f"no answer from {route} within {CONNECT_SECONDS:.0f} s")
    try:
        future.result()
    finally:
        # The future holds the error, and the error's traceback this frame.
        del future, done


def _explain_certificate(refused: CertificateRefused, endpoint: Endpoint) -> str:
    error = refused.error
    if is_of_dates(error):
        return f"the certificate of {endpoint} {explain_dates(error.verify_code, refused.validity)}"
    said = error.verify_message.rstrip(".")
    if error.verify_code in _OF_ANOTHER_NAME:
        said = f"it is not valid for '{endpoint.host}'"
        remedy = "connect by a name that the certificate has (-e/--proxy-endpoint), or see who answers there"
    else:
        remedy = "pass its CA certificate with -c/--capath or AWSIOT_TUNNEL_CAPATH"
    return f"the certificate of {endpoint} cannot be verified ({said}): {remedy}"


def _explain_refusal(refusal: Exception, response: Response, mode: Mode, channel_id: str) -> LinkLost | TunnelRefused:
    if not isinstance(refusal, InvalidStatus):
        # NegotiationError, InvalidUpgrade …: a peer that is no tunneling service, or too old or new for us.
        return LinkLost("the answer was not that of a tunneling service", permanent=True)
    status = response.status_code
    said = (response.body or b"").decode("utf-8", "replace").strip()[:200]
    if status >= 500:
        return LinkLost(f"the service answers {status} {response.reason_phrase}")
    cause = response.headers.get("x-iotops-cause", "")
    if cause not in _REMEDIES:
        cause = next((cause for cause, words in _CAUSES if words in said.lower()), "refused")
    words = f"the service refused with {status}: {_REMEDIES[cause].format(mode=mode.value)}"
    if said:
        words += f" (it says: {said})"
    if channel_id:
        words += f" [channel-id {channel_id}]"
    return TunnelRefused(words, cause=cause, status=status, channel_id=channel_id)
