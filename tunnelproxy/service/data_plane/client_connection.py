# SPDX-License-Identifier: Apache-2.0
"""The connection of one client of the data plane: handshake, messages, and end."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from http import HTTPStatus
from typing import Callable

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, Event
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from ...net import receive_buffer
from ...net.socket_options import UnansweredData, keep_alive
from ...net.websocket import Callbacks, WebSocket
from ...protocol.framing import MAX_WEBSOCKET_MESSAGE, Bytes, Message, ProtocolError, frame
from ...protocol.session import SUBPROTOCOLS, Mode, Version, version_of
from ..errors import StoreError
from ..logs.unexpected_errors import UnexpectedErrors
from .admission import Admission, Admissions
from .connected_clients import Client, ConnectedClients
from .frame_rules import BrokenRule, FrameRules
from .handshake import CAUSE_HEADER, CHANNEL_HEADER, Cause, HandshakeRejected, RequestReader, read_handshake
from .ingress import Ingress
from .relay import Relay
from .relays import Relays

__all__ = ["HANDSHAKE_DEADLINE", "ClientConnection"]

HANDSHAKE_DEADLINE = 10.0
"""Seconds that a client has for its handshake request after the TLS handshake."""

_CLOSE_DEADLINE = 5.0
_LINGER = 0.5
_SEND_BUFFER = 128 * 1024
_LOST_SECONDS = 60.0

log = logging.getLogger(__name__)
# At the debug level, websockets logs the headers of the handshake, and so the tokens.
_websockets_log = logging.getLogger("tunnelproxy.service.websockets")
_websockets_log.setLevel(logging.ERROR)


class ClientConnection(asyncio.BufferedProtocol):
    """A client's connection, from the end of its TLS handshake on.

    Args:
        admissions: decides whether the client may join a tunnel.
        relays: joins it to the tunnel's other end.
        connected_clients: keeps account of it.
        failures: logs errors of this service.
        opened: called with this connection when it begins.
        joined: called with this connection when the client has joined a tunnel.
        lost: called with this connection when it has ended.
    """

    client: Client
    """What is on record of the client, once it has joined a tunnel."""

    def __init__(
        self,
        *,
        admissions: Admissions,
        relays: Relays,
        connected_clients: ConnectedClients,
        failures: UnexpectedErrors,
        opened: Callable[[ClientConnection], None],
        joined: Callable[[ClientConnection], None],
        lost: Callable[[ClientConnection], None],
    ) -> None:
        self._channel_id = secrets.token_hex(16)
        self._admissions = admissions
        self._relays = relays
        self._connected_clients = connected_clients
        self._failures = failures
        self._opened = opened
        self._joined = joined
        self._lost = lost
        self._server = ServerProtocol(max_size=MAX_WEBSOCKET_MESSAGE, logger=_websockets_log)
        self._websocket = WebSocket(
            self._server,
            Callbacks(
                message=self._message_received,
                event=self._event_received,
                last_sent=self._last_sent,
                too_much_unsent=self._too_much_unsent,
            ),
        )
        self._unanswered: UnansweredData
        self._address: str | None = None
        self._request: RequestReader | None = RequestReader()
        """Reads the handshake request; None once that is answered."""
        self._relay: Relay | None = None
        self._ingress: Ingress | None = None
        self._paused = False

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._websocket.connection_made(transport, _SEND_BUFFER)
        sock = transport.get_extra_info("socket")
        _tune(sock)
        self._unanswered = UnansweredData(sock)
        self._address = (transport.get_extra_info("peername") or [None])[0]
        self._websocket.set_timer(HANDSHAKE_DEADLINE, self.abort)
        self._opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._websocket.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._request is None:
            self._websocket.buffer_updated(nbytes)
        else:
            self._read_request(self._request, bytes(receive_buffer.received(nbytes)))
        if self._ingress is not None and not self._ingress.pass_on():
            self._pause_or_resume()

    def eof_received(self) -> None:
        self._websocket.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._websocket.connection_lost()
        if self._ingress is not None:
            self._ingress.close()
            # It refers to this object: only a full garbage collection would free such a cycle.
            self._ingress = None
            self._connected_clients.left(self.client, self._outcome)
            self._relays.detach(self)
        self._lost(self)

    def pause_writing(self) -> None:
        if self._relay is not None:
            self._relay.pause_writing(self)
        self._websocket.pause_writing()

    def resume_writing(self) -> None:
        self._websocket.resume_writing()
        if self._relay is not None:
            self._relay.resume_writing(self)

    # What the relay and the data plane do.

    def send(self, *messages: Bytes) -> None:
        """Send frames. Each argument is split into WebSocket messages of the size that clients accept."""
        if self._server.state is not OPEN:
            return
        self.client.bytes_sent += sum(map(len, messages))
        for message in messages:
            for start in range(0, len(message), MAX_WEBSOCKET_MESSAGE):
                self._websocket.send((message[start : start + MAX_WEBSOCKET_MESSAGE],))

    def pause_reading(self) -> None:
        """Read nothing from the client until :meth:`resume_reading`."""
        self._paused = True
        self._pause_or_resume()

    def resume_reading(self) -> None:
        """Read from the client again."""
        self._paused = False
        self._pause_or_resume()

    def disconnect(self, code: int, reason: str) -> None:
        """Begin the closing handshake. A client that does not complete it in time is cut off."""
        if self._websocket.is_open:
            self._server.send_close(code, reason)
            self._websocket.set_timer(_CLOSE_DEADLINE, self.abort)
            # Its answer must be read even if reading was paused.
            self.resume_reading()
            self._websocket.flush()

    def abort(self) -> None:
        """Close the connection at once."""
        self._websocket.abort()

    def abort_if_lost(self) -> None:
        """Close the connection if the client's machine no longer acknowledges what is sent.

        Call it at regular intervals: see :class:`UnansweredData`.
        """
        seconds = self._unanswered.seconds()
        if seconds >= _LOST_SECONDS and not self._websocket.is_closing:
            log.info(
                "channel %s: lost: the client has acknowledged nothing for %.0f s",
                self._channel_id,
                seconds,
                extra={"channel": self._channel_id},
            )
            self.abort()

    @property
    def _outcome(self) -> str:
        """The code and reason of the close frame that came first; or that there was none."""
        sent, received = self._server.close_sent, self._server.close_rcvd
        first = received if self._server.close_rcvd_then_sent else sent or received
        return "connection lost" if first is None else f"{first.code} {first.reason}".strip()

    def _pause_or_resume(self) -> None:
        waiting = self._ingress is not None and self._ingress.is_waiting
        if (self._paused or waiting) and self._websocket.is_open:
            self._websocket.pause_reading()
        else:
            self._websocket.resume_reading()

    # The handshake.

    def _read_request(self, reader: RequestReader, data: bytes) -> None:
        """Collect the request, and answer it once it is complete."""
        try:
            complete = reader.feed(data)
        except HandshakeRejected as rejection:
            self._reject(rejection)
            return
        if complete is not None:
            self._request = None
            self._websocket.request_received(*complete)

    def _answer(self, request: Request) -> None:
        try:
            admission = self._admissions.check(read_handshake(request.path, request.headers))
            response = self._accept(request, admission)
            if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                self._admissions.redeem(admission)
        except HandshakeRejected as rejection:
            self._reject(rejection)
        except StoreError:
            # The reason is logged once, elsewhere. Clients retry after 5xx.
            self._reject(
                HandshakeRejected(
                    Cause.UNAVAILABLE, "The service cannot store its state at present.", HTTPStatus.SERVICE_UNAVAILABLE
                )
            )
        except Exception as error:
            self._failures.report(f"channel {self._channel_id}: the handshake has failed", error)
            self._reject(HandshakeRejected(Cause.UNAVAILABLE, "The service failed.", HTTPStatus.INTERNAL_SERVER_ERROR))
        else:
            self._finish_handshake(request, response, admission)

    def _accept(self, request: Request, admission: Admission) -> Response:
        """Negotiate the subprotocol.

        A tunnel that was opened without services carries one without a name. A source that offers V1 gets it there,
        because no message may have a service ID. A destination adapts to its source: AWS's reference 3.3.1 offers only
        V3.
        """
        preferred = [Subprotocol(name) for name in SUBPROTOCOLS.values()]
        if not admission.tunnel.services and admission.mode is Mode.SOURCE:
            preferred.reverse()
        self._server.available_subprotocols = preferred
        return self._server.accept(request)

    def _finish_handshake(self, request: Request, response: Response, admission: Admission) -> None:
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            # websockets rejects the request.
            self._record_rejection(HandshakeRejected(Cause.BAD_REQUEST, "Invalid WebSocket handshake."), response)
            self._respond(response)
            return
        self._respond(response)
        self._join(admission)
        # websockets keeps the request as long as the connection: 3 kB, and an access token.
        request.headers.clear()

    def _reject(self, rejection: HandshakeRejected) -> None:
        response = self._server.reject(rejection.status, rejection.sentence)
        self._record_rejection(rejection, response)
        self._respond(response)

    def _record_rejection(self, rejection: HandshakeRejected, response: Response) -> None:
        response.headers[CAUSE_HEADER] = rejection.cause.value
        self._connected_clients.rejected(self._channel_id, self._address, rejection)

    def _respond(self, response: Response) -> None:
        response.headers[CHANNEL_HEADER] = self._channel_id
        self._request = None
        self._server.send_response(response)
        self._websocket.flush()

    def _join(self, admission: Admission) -> None:
        self._websocket.cancel_timer()
        tunnel, version = admission.tunnel, version_of(str(self._server.subprotocol))
        self.client = Client(self._channel_id, self._address, tunnel, admission.key, admission.mode, version)
        if version is not Version.V1:
            self.send(frame(Message(type=Message.SERVICE_IDS, availableServiceIds=tunnel.services)))
        self._joined(self)
        self._connected_clients.joined(self.client)
        self._relay = self._relays.attach(self)
        rules = FrameRules(admission.mode, None if version is Version.V1 else tunnel.services)
        self._ingress = Ingress(self, self._relay, rules, self._pause_or_resume)

    # What the WebSocket reports.

    def _message_received(self, data: Bytes) -> None:
        if self._ingress is None:
            return
        try:
            self._ingress.receive(data)
        except ProtocolError as error:
            self._break_off(CloseCode.PROTOCOL_ERROR, str(error))
        except BrokenRule as error:
            self._break_off(CloseCode.POLICY_VIOLATION, str(error))

    def _event_received(self, event: Event) -> None:
        if isinstance(event, Request):
            self._answer(event)
        elif isinstance(event, Frame) and event.opcode is Opcode.TEXT and self._websocket.is_open:
            self._break_off(CloseCode.UNSUPPORTED_DATA, "only binary messages are allowed")

    def _break_off(self, code: CloseCode, reason: str) -> None:
        log.warning(
            "channel %s: closed for breaking the protocol: %s",
            self._channel_id,
            reason,
            extra={"channel": self._channel_id},
        )
        self.disconnect(code, reason)

    def _last_sent(self) -> None:
        self.resume_reading()
        if self._server.close_rcvd is not None:
            self._websocket.set_timer(_CLOSE_DEADLINE, self.abort)
            self._websocket.close_transport()
        else:
            # Closing a socket that still has data to read makes TCP discard what it has not sent yet, and a client that
            # is rejected or breaks the rules may be in the middle of a message. Most clients disconnect by themselves.
            self._websocket.set_timer(_LINGER, self.abort)

    def _too_much_unsent(self) -> None:
        log.warning(
            "channel %s: cut off: it does not read the data that is sent to it",
            self._channel_id,
            extra={"channel": self._channel_id},
        )


def _tune(sock: socket.socket) -> None:
    """Send small messages at once, and notice peers that have vanished."""
    keep_alive(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
