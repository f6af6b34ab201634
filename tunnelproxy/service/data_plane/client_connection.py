# SPDX-License-Identifier: Apache-2.0
"""One client of the data plane: TLS and asyncio around websockets' protocol without I/O."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import deque
from http import HTTPStatus
from typing import Protocol, cast

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, SEND_EOF
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from ...net import receive_buffer
from ...net.connections import Reading
from ...net.socket_options import ReceiveBuffer, keep_alive, unanswered_seconds
from ...protocol.decoder import Decoder
from ...protocol.framing import (
    MAX_WEBSOCKET_MESSAGE,
    Bytes,
    Message,
    ProtocolError,
    frame,
    join_frames,
)
from ...protocol.websocket import MessageReader, encode_binary
from ..errors import StoreError
from ..model import Mode, Tunnel
from .admission import Admission, Admissions
from .frame_rules import BrokenRule, FrameRules
from .handshake import CAUSE_HEADER, CHANNEL_HEADER, MAX_REQUEST, SUBPROTOCOLS, Cause, HandshakeRejected, read_handshake
from .relay import Relay

__all__ = ["HANDSHAKE_DEADLINE", "Connection", "ConnectionRegistry"]

HANDSHAKE_DEADLINE = 10.0
"""Seconds that a client has for its handshake request, counted from the end of the TLS handshake."""

_CLOSE_DEADLINE = 5.0
_LINGER = 0.5
_SEND_MARK = 128 * 1024
# Answers to pings and to starts go to a client that may not read them; the mark holds back only what its peer sends.
_SEND_LIMIT = 2 * 1024 * 1024
_NOTSENT_LOWAT = 128 * 1024
_END_OF_REQUEST = b"\r\n\r\n"
_LOST_SECONDS = 60.0

_log = logging.getLogger(__name__)
# At DEBUG, websockets logs the handshake's headers, and the tokens are there.
_websockets_log = logging.getLogger("tunnelproxy.service.websockets")
_websockets_log.setLevel(logging.ERROR)


class ConnectionRegistry(Protocol):
    """Where connections find their tunnel's relay."""

    def opened(self, connection: Connection) -> None:
        """A TCP connection came; remember it until it is lost."""

    def lost(self, connection: Connection) -> None:
        """It is gone."""

    def refused(self, connection: Connection, refusal: HandshakeRejected) -> None:
        """Its handshake was refused."""

    def failed(self, connection: Connection, error: Exception) -> None:
        """Its handshake met a fault of ours."""

    def attach(self, connection: Connection, admission: Admission) -> Relay:
        """Its handshake succeeded."""

    def detach(self, connection: Connection, tunnel: Tunnel) -> None:
        """It had a tunnel, and is gone."""


class Connection(asyncio.BufferedProtocol):
    """A client's connection, from TCP accept to the end.

    Args:
        registry: where it finds its relay.
        admissions: who decides whether it may join.
    """

    mode: Mode
    version: int

    def __init__(self, registry: ConnectionRegistry, admissions: Admissions) -> None:
        self.channel_id = secrets.token_hex(16)
        self.address: str | None = None
        self.bytes_received = 0
        self.bytes_sent = 0
        self._registry = registry
        self._admissions = admissions
        self._websocket = ServerProtocol(max_size=MAX_WEBSOCKET_MESSAGE, logger=_websockets_log)
        self._messages = MessageReader(self._websocket, self._message_received, self._handle_events)
        self._decoder = Decoder()
        self._latest: Message | None = None
        self._request = b""
        self._transport: asyncio.Transport
        self._reading: Reading
        self._receive_buffer: ReceiveBuffer
        self._timer: asyncio.TimerHandle | None = None
        self._tunnel: Tunnel | None = None
        self._relay: Relay | None = None
        self._rules: FrameRules | None = None
        self._is_held_back = False
        self._rest: asyncio.TimerHandle | None = None
        self._to_relay: deque[Bytes] = deque()
        """What came with one read. It goes on after that, together: an eighth faster than each message by itself."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_SEND_MARK)
        self._reading = Reading(self._transport)
        sock = transport.get_extra_info("socket")
        _tune(sock)
        self._receive_buffer = ReceiveBuffer(sock)
        self.address = (transport.get_extra_info("peername") or [None])[0]
        self._set_timer(HANDSHAKE_DEADLINE)
        self._registry.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return receive_buffer.behind(self._messages.rest)

    def buffer_updated(self, nbytes: int) -> None:
        self._receive_buffer.took(nbytes)
        data = receive_buffer.received(len(self._messages.rest) + nbytes)
        if self._tunnel is None and not self._request.endswith(_END_OF_REQUEST):
            data = memoryview(self._read_request(bytes(data)))
        self._messages.feed(data)
        if self._to_relay and self._relay is not None and self._rest is None:
            self._pass_on(self._relay)
        self._flush()

    def eof_received(self) -> None:
        self._websocket.receive_eof()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._messages.release()
        if self._timer is not None:
            self._timer.cancel()
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._relay is not None:
            self._relay.relay(self, *self._to_relay)
        if self._tunnel is not None:
            self._registry.detach(self, self._tunnel)
        self._registry.lost(self)

    def pause_writing(self) -> None:
        if self._relay is not None:
            self._relay.hold_back(self)

    def resume_writing(self) -> None:
        if self._relay is not None:
            self._relay.let_go(self)

    # What the relay and the data plane call

    def send(self, *messages: Bytes) -> None:
        """Send frames, each argument in WebSocket messages of the size that clients accept."""
        if self._websocket.state is not OPEN:
            return
        self.bytes_sent += sum(map(len, messages))
        for message in messages:
            for start in range(0, len(message), MAX_WEBSOCKET_MESSAGE):
                self._transport.write(encode_binary((message[start : start + MAX_WEBSOCKET_MESSAGE],), masked=False))
        self._limit_what_waits()

    def pause_reading(self) -> None:
        """Take nothing from the client until :meth:`resume_reading`."""
        self._is_held_back = True
        self._read_or_wait()

    def resume_reading(self) -> None:
        """Take from the client again."""
        self._is_held_back = False
        self._read_or_wait()

    def disconnect(self, code: int, reason: str) -> None:
        """Begin the closing handshake; a client that does not finish it in time is cut off."""
        if self._websocket.state is OPEN:
            self._websocket.send_close(code, reason)
            self._set_timer(_CLOSE_DEADLINE)
            # Its answer must be read even while its data was held back.
            self.resume_reading()
            self._flush()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def abort_if_lost(self) -> None:
        """Cut the connection where the client's machine acknowledges nothing any more."""
        seconds = unanswered_seconds(self._transport.get_extra_info("socket"))
        if seconds >= _LOST_SECONDS and not self._transport.is_closing():
            about = {"channel": self.channel_id}
            _log.info("channel %s: lost, as nothing has answered for %.0f s", self.channel_id, seconds, extra=about)
            self.abort()

    @property
    def ending(self) -> str:
        """How the connection ended: the code and reason that closed it, or that there were none."""
        ours, theirs = self._websocket.close_sent, self._websocket.close_rcvd
        first = theirs if self._websocket.close_rcvd_then_sent else ours or theirs
        return "connection lost" if first is None else f"{first.code} {first.reason}".strip()

    # How fast it is read

    def _read_or_wait(self) -> None:
        if self._transport.is_closing():
            return
        if (self._is_held_back or self._rest is not None) and self._websocket.state is OPEN:
            self._reading.pause()
        else:
            self._reading.resume()

    def _pass_on(self, relay: Relay) -> None:
        """Pass on what has come, no faster than the tunnel may go."""
        passed: list[Bytes] = []
        seconds = 0.0
        while self._to_relay and seconds <= 0:
            message = self._to_relay.popleft()
            passed.append(message)
            self.bytes_received += len(message)
            if relay.pace is not None:
                seconds = relay.pace.take(len(message))
        relay.relay(self, *passed)
        if seconds > 0:
            self._rest = asyncio.get_running_loop().call_later(seconds, self._go_on, relay)
            self._read_or_wait()

    def _go_on(self, relay: Relay) -> None:
        self._rest = None
        if self._to_relay:
            self._pass_on(relay)
        self._read_or_wait()

    # Handshake

    def _read_request(self, data: bytes) -> bytes:
        """Collect the request up to its end, answer it, and return what follows it."""
        self._request += data
        end = self._request.find(_END_OF_REQUEST)
        size = len(self._request) if end < 0 else end + len(_END_OF_REQUEST)
        if size > MAX_REQUEST:
            self._refuse(
                HandshakeRejected(Cause.BAD_REQUEST, f"Invalid request: it is larger than {MAX_REQUEST} bytes.")
            )
            return b""
        if end < 0:
            return b""
        self._request, rest = self._request[:size], self._request[size:]
        self._websocket.receive_data(self._request)
        for event in self._websocket.events_received():
            self._answer(cast(Request, event))
        self._request = _END_OF_REQUEST
        return rest

    def _answer(self, request: Request) -> None:
        try:
            admission = self._admissions.check(read_handshake(request.path, request.headers))
            response = self._accept(request, admission)
            if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                self._admissions.redeem(admission)
        except HandshakeRejected as refusal:
            self._refuse(refusal)
            return
        except StoreError:
            # The log has the reason, once. Clients come again after 5xx.
            self._refuse(
                HandshakeRejected(
                    Cause.UNAVAILABLE, "The service cannot keep its state at present.", HTTPStatus.SERVICE_UNAVAILABLE
                )
            )
            return
        except Exception as error:
            self._registry.failed(self, error)
            self._refuse(HandshakeRejected(Cause.UNAVAILABLE, "The service failed.", HTTPStatus.INTERNAL_SERVER_ERROR))
            return
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            response.headers[CAUSE_HEADER] = Cause.BAD_REQUEST.value
            self._registry.refused(self, HandshakeRejected(Cause.BAD_REQUEST, "Invalid WebSocket handshake."))
            self._respond(response)
            return
        self._respond(response)
        self._join(admission)
        # websockets keeps the request as long as the connection: 3 kB, and an access token.
        request.headers.clear()

    def _accept(self, request: Request, admission: Admission) -> Response:
        """Negotiate the subprotocol.

        A tunnel that was opened without services carries one without a name. A source that offers V1 gets it there, for
        no message may have a service ID. A destination follows its source: AWS's reference 3.3.1 offers V3 only.
        """
        oldest_first = not admission.tunnel.services and admission.mode is Mode.SOURCE
        preferred = sorted(SUBPROTOCOLS, key=SUBPROTOCOLS.__getitem__, reverse=not oldest_first)
        self._websocket.available_subprotocols = [Subprotocol(name) for name in preferred]
        return self._websocket.accept(request)

    def _refuse(self, refusal: HandshakeRejected) -> None:
        response = self._websocket.reject(refusal.status, refusal.sentence)
        response.headers[CAUSE_HEADER] = refusal.cause.value
        self._registry.refused(self, refusal)
        self._respond(response)

    def _respond(self, response: Response) -> None:
        response.headers[CHANNEL_HEADER] = self.channel_id
        self._request = _END_OF_REQUEST
        self._websocket.send_response(response)
        self._flush()

    def _join(self, admission: Admission) -> None:
        tunnel = admission.tunnel
        self._cancel_timer()
        self.mode = admission.mode
        self.version = SUBPROTOCOLS[str(self._websocket.subprotocol)]
        self._rules = FrameRules(self.mode, tunnel.services if self.version > 1 else None)
        self._tunnel = tunnel
        if self.version > 1:
            self.send(frame(Message(type=Message.SERVICE_IDS, availableServiceIds=tunnel.services)))
        self._relay = self._registry.attach(self, admission)

    # Messages

    def _handle_events(self) -> None:
        for event in self._websocket.events_received():
            # After a close was sent, what still comes counts no more.
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT and self._websocket.state is OPEN:
                self._reject(CloseCode.UNSUPPORTED_DATA, "only binary messages are allowed")

    def _message_received(self, data: Bytes) -> None:
        """Take what a binary WebSocket message brought."""
        if self._rules is None or self._relay is None:
            return
        try:
            self._take_frames(data, self._rules, self._relay)
        except ProtocolError as error:
            self._reject(CloseCode.PROTOCOL_ERROR, str(error))
        except BrokenRule as error:
            self._reject(CloseCode.POLICY_VIOLATION, str(error))

    def _take_frames(self, data: Bytes, rules: FrameRules, relay: Relay) -> None:
        """Have the frames that ``data`` completes passed on; also those before one that breaks a rule."""
        whole = not self._decoder.pending
        passed: list[Bytes] = []
        try:
            for message, _, encoded in self._decoder.decode(data):
                if message is self._latest or self._is_relayed(message, rules, relay):
                    passed.append(encoded)
                else:
                    whole = False
            whole = whole and not self._decoder.pending
        except (ProtocolError, BrokenRule):
            whole = False
            raise
        finally:
            if passed:
                # As a rule the data is whole messages that are all relayed, and need not be put together again.
                self._to_relay.append(data if whole else join_frames(passed))

    def _is_relayed(self, message: Message, rules: FrameRules, relay: Relay) -> bool:
        if not (rules.check(message) and relay.consider(self, message)):
            return False
        if message.type == Message.DATA:
            self._latest = message
        return True

    def _reject(self, code: CloseCode, reason: str) -> None:
        _log.warning(
            "channel %s: closed for breaking the protocol: %s",
            self.channel_id,
            reason,
            extra={"channel": self.channel_id},
        )
        self.disconnect(code, reason)

    # Output

    def _flush(self) -> None:
        for piece in self._websocket.data_to_send():
            if piece is SEND_EOF or not piece:
                self._finish()
            else:
                self._transport.write(piece)
        self._limit_what_waits()

    def _limit_what_waits(self) -> None:
        if self._transport.get_write_buffer_size() > _SEND_LIMIT:
            _log.warning(
                "channel %s: cut off, as it does not read what it is sent",
                self.channel_id,
                extra={"channel": self.channel_id},
            )
            self._transport.abort()

    def _finish(self) -> None:
        self.resume_reading()
        if self._websocket.close_rcvd is not None:
            self._set_timer(_CLOSE_DEADLINE)
            self._transport.close()
        else:
            # Closing a socket that still has data to read makes TCP throw away what is on its way out, and a client
            # that is refused, or broke the rules, may be in the middle of a message. Most hang up by themselves.
            self._set_timer(_LINGER)

    def _set_timer(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _tune(sock: socket.socket) -> None:
    """Keep the kernel's queues short, and find out about peers that vanished."""
    keep_alive(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOTSENT_LOWAT)
