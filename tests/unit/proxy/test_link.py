# SPDX-License-Identifier: GPL-3.0-or-later
"""The link against a real WebSocket server over TLS, which behaves as the test wants."""

from __future__ import annotations

import asyncio
import http
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.frames import Frame, Opcode

from peers.certificate import make_server_certificate
from peers.event_loop import Clock, in_event_loop, until
from tunnelproxy.errors import TunnelClosed, TunnelRefused
from tunnelproxy.net import connections
from tunnelproxy.net.endpoint import Endpoint, tls_context
from tunnelproxy.net.route import PING_SECONDS, Route
from tunnelproxy.net.socket_options import UnansweredData
from tunnelproxy.protocol.session import SUBPROTOCOLS, Mode, Version
from tunnelproxy.proxy.link import Link, LinkLost, TunnelCredentials, connect, probe
from tunnelproxy.service.state.certificates import Certificates, server_context

V3 = SUBPROTOCOLS[Version.V3]
ACCESS = TunnelCredentials(Mode.SOURCE, "the-access-token", "the-client-token")


class Receiver:
    """Keeps what the link brings."""

    def __init__(self) -> None:
        self.data = b""
        self.up = False
        self.down = False

    def link_up(self, link: Link) -> None:
        self.up = True

    def data_received(self, data: bytes) -> None:
        self.data += data

    def link_writable(self) -> None:
        pass

    def link_down(self) -> None:
        self.down = True


Handler = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def server(certificates: Certificates, handler: Handler, **settings: Any) -> Any:
    settings.setdefault("subprotocols", [V3])
    tls = server_context(certificates)
    async with serve(handler, "127.0.0.1", 0, ssl=tls, compression=None, **settings) as running:
        yield Endpoint("127.0.0.1", running.sockets[0].getsockname()[1])


async def link_to(
    endpoint: Endpoint, certificates: Certificates, ping_seconds: float = PING_SECONDS
) -> tuple[Link, Receiver]:
    receiver = Receiver()
    route = Route(endpoint, tls_context(str(certificates.ca)), ping_seconds=ping_seconds)
    return await connect(route, ACCESS, receiver), receiver


async def until_closed(connection: ServerConnection) -> None:
    await connection.wait_closed()


@in_event_loop
async def test_the_handshake_carries_mode_tokens_and_subprotocol(certificates: Certificates) -> None:
    seen: list[Request] = []

    async def handler(connection: ServerConnection) -> None:
        seen.append(connection.request)
        await connection.wait_closed()

    async with server(certificates, handler) as endpoint:
        link, receiver = await link_to(endpoint, certificates)
        await until(lambda: seen)
        assert receiver.up
        assert seen[0].path == "/tunnel?local-proxy-mode=source"
        assert seen[0].headers["access-token"] == "the-access-token"
        assert seen[0].headers["client-token"] == "the-client-token"
        assert seen[0].headers["Sec-WebSocket-Protocol"] == ", ".join(SUBPROTOCOLS.values())
        link.close()
        await link.lost


@in_event_loop
async def test_fragments_and_messages_arrive_as_one_sequence_of_bytes(certificates: Certificates) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send([b"one ", b"two ", b"three "])
        await connection.send(b"four")
        await connection.wait_closed()

    async with server(certificates, handler) as endpoint:
        link, receiver = await link_to(endpoint, certificates)
        await until(lambda: receiver.data == b"one two three four")
        link.close()
        assert isinstance(await link.lost, LinkLost)
        assert receiver.down


@in_event_loop
async def test_what_the_service_sent_before_it_received_the_close_arrives(certificates: Certificates) -> None:
    connections: list[ServerConnection] = []

    async def handler(connection: ServerConnection) -> None:
        connections.append(connection)
        await connection.wait_closed()

    async with server(certificates, handler) as endpoint:
        link, receiver = await link_to(endpoint, certificates)
        await until(lambda: connections)
        link.close()
        await connections[0].send(b"late")
        await link.lost
        assert receiver.data == b"late"


@in_event_loop
async def test_what_is_sent_arrives_and_the_round_trip_is_measured(certificates: Certificates) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send(await connection.recv())
        await connection.wait_closed()

    async with server(certificates, handler) as endpoint:
        link, receiver = await link_to(endpoint, certificates)
        link.send((b"hello",))
        await until(lambda: receiver.data == b"hello" and link.round_trip is not None)
        assert 0 < link.round_trip < 5
        link.close()
        await link.lost


@in_event_loop
async def test_a_text_message_ends_the_link(certificates: Certificates) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send("text")
        await connection.wait_closed()

    async with server(certificates, handler) as endpoint:
        link, _ = await link_to(endpoint, certificates)
        assert "sent a text message" in str(await link.lost)


@pytest.mark.parametrize(("reason", "kind"), [("Tunnel closed", TunnelClosed), ("going away", LinkLost)])
def test_the_reason_of_a_close_says_whether_the_tunnel_is_gone(
    certificates: Certificates, reason: str, kind: type[Exception]
) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.close(1000, reason)

    @in_event_loop
    async def check() -> None:
        async with server(certificates, handler) as endpoint:
            link, _ = await link_to(endpoint, certificates)
            cause = await link.lost
            assert isinstance(cause, kind)
            assert reason in str(cause)

    check()


@pytest.mark.parametrize(
    ("status", "headers", "body", "cause", "words"),
    [
        (400, {"x-iotops-cause": "token-used"}, "", "token-used", "was used before"),
        (400, {}, "Invalid access token: The access token was previously used", "token-used", "was used before"),
        (403, {}, "", "refused", "is this the region"),
        (400, {"channel-id": "abc123"}, "Tunnel closed", "tunnel-closed", r"\[channel-id abc123\]"),
    ],
)
def test_a_refusal_names_its_cause(
    certificates: Certificates, status: int, headers: dict[str, str], body: str, cause: str, words: str
) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(http.HTTPStatus(status), body)
        for name, value in headers.items():
            response.headers[name] = value
        return response

    @in_event_loop
    async def check() -> None:
        async with server(certificates, until_closed, process_request=refuse) as endpoint:
            with pytest.raises(TunnelRefused, match=words) as caught:
                await link_to(endpoint, certificates)
            assert (caught.value.cause, caught.value.status) == (cause, status)
            assert "the-access-token" not in str(caught.value)

    check()


@in_event_loop
async def test_a_server_error_may_pass(certificates: Certificates) -> None:
    def fail(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "busy")

    async with server(certificates, until_closed, process_request=fail) as endpoint:
        with pytest.raises(LinkLost, match="the service answers 503") as caught:
            await link_to(endpoint, certificates)
        assert not caught.value.permanent


@in_event_loop
async def test_a_server_without_the_subprotocol_is_no_tunneling_service(certificates: Certificates) -> None:
    async with server(certificates, until_closed, subprotocols=None) as endpoint:
        with pytest.raises(LinkLost, match="is not a tunneling service") as caught:
            await link_to(endpoint, certificates)
        assert caught.value.permanent


@in_event_loop
async def test_an_untrusted_certificate_is_named_as_such(certificates: Certificates, tmp_path: Path) -> None:
    others = Certificates(tmp_path / "keys", tmp_path / "ca")
    others.ensure("localhost")
    async with server(certificates, until_closed) as endpoint:
        with pytest.raises(LinkLost, match=r"cannot be verified .*--capath") as caught:
            await link_to(endpoint, others)
        assert caught.value.permanent


@in_event_loop
async def test_nothing_listening_is_named_as_such() -> None:
    tls = ssl.create_default_context()
    with pytest.raises(LinkLost, match=r"cannot reach 127\.0\.0\.1:1: connection refused"):
        await connect(Route(Endpoint("127.0.0.1", 1), tls), ACCESS, Receiver())


@in_event_loop
async def test_a_probe_connects_and_disconnects(certificates: Certificates) -> None:
    ended = asyncio.Event()

    async def until_ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        writer.close()
        ended.set()

    tls = server_context(certificates)
    async with await asyncio.start_server(until_ended, "127.0.0.1", 0, ssl=tls) as listening:
        endpoint = Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1])
        await probe(Route(endpoint, tls_context(str(certificates.ca))))
        await asyncio.wait_for(ended.wait(), 10)


@in_event_loop
async def test_a_probe_that_fails_says_why() -> None:
    with pytest.raises(LinkLost, match=r"cannot reach 127\.0\.0\.1:1: connection refused"):
        await probe(Route(Endpoint("127.0.0.1", 1), ssl.create_default_context()))


@in_event_loop
async def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.link.CONNECT_SECONDS", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listening:
        endpoint = Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1])
        with pytest.raises(LinkLost, match="no answer from"):
            await connect(Route(endpoint, ssl.create_default_context()), ACCESS, Receiver())


@in_event_loop
async def test_a_server_that_fell_silent_is_dead(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.link.DEAD_SECONDS", 0.3)
    stopped = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await asyncio.wait_for(stopped.wait(), 10)
        connection.transport.pause_reading()
        await connection.wait_closed()

    async with server(certificates, handler, ping_interval=None, close_timeout=0.1) as endpoint:
        link, _ = await link_to(endpoint, certificates, ping_seconds=0.1)
        await until(lambda: link.round_trip is not None)
        stopped.set()
        assert "has been silent" in str(await link.lost)


@in_event_loop
async def test_a_server_whose_machine_acknowledges_nothing_is_dead(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(UnansweredData, "seconds", lambda unanswered: seconds)

    async with server(certificates, lambda connection: connection.wait_closed(), ping_interval=None) as endpoint:
        link, _ = await link_to(endpoint, certificates, ping_seconds=0.05)
        await until(lambda: link.round_trip is not None)
        seconds = 35.0
        await until(lambda: link._ping_sent_at is None)
        assert not link.lost.done()
        seconds = 36.0
        assert str(await link.lost) == f"{endpoint} has acknowledged nothing for 36 s"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
@in_event_loop
async def test_the_kernel_does_not_decide_that_a_server_is_dead(certificates: Certificates) -> None:
    """Where a firewall drops outgoing packets, Linux ends a connection with TCP_USER_TIMEOUT at the second outage."""
    async with server(certificates, lambda connection: connection.wait_closed()) as endpoint:
        link, _ = await link_to(endpoint, certificates)
        sock = link._websocket._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        link.abort()
        await link.lost


@in_event_loop
async def test_a_server_that_does_not_answer_pings_is_not_dead_while_data_flows(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if it answered one: here the first, before the server stops to read."""
    monkeypatch.setattr("tunnelproxy.proxy.link.DEAD_SECONDS", 3)
    clock = Clock(monkeypatch)
    connections: list[ServerConnection] = []

    async def handler(connection: ServerConnection) -> None:
        connections.append(connection)
        await connection.wait_closed()

    async with server(certificates, handler, ping_interval=None, close_timeout=0.1) as endpoint:
        link, receiver = await link_to(endpoint, certificates, ping_seconds=2)
        await until(lambda: link.round_trip is not None)
        connections[0].transport.pause_reading()
        for number in range(5):
            await connections[0].send(b"data")
            await until(lambda number=number: receiver.data == b"data" * (number + 1))
            clock.skip(2)
        assert not link.lost.done()
        link.abort()
        await link.lost


@in_event_loop
async def test_its_own_pause_does_not_make_a_server_dead(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelproxy.proxy.link.DEAD_SECONDS", 3)
    clock = Clock(monkeypatch)
    pings = 0

    class Counting(ServerConnection):
        def process_event(self, event: Any) -> None:
            nonlocal pings
            pings += isinstance(event, Frame) and event.opcode is Opcode.PING
            super().process_event(event)

    settings = {"ping_interval": None, "create_connection": Counting}
    async with server(certificates, until_closed, **settings) as endpoint:
        link, _ = await link_to(endpoint, certificates, ping_seconds=2)
        await until(lambda: link.round_trip is not None)
        link.pause_reading()
        # It looks whether the server is dead before each ping, and finds the second of these unanswered for too long.
        for seconds in (2, 4, 4):
            before = pings
            clock.skip(seconds)
            await until(lambda before=before: pings > before or link.lost.done())
            assert not link.lost.done()
        link.resume_reading()
        link.close()
        await link.lost


@in_event_loop
async def test_a_server_that_reads_nothing_of_what_is_sent_unasked_is_left(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await connection.wait_closed()

    async with server(certificates, handler, ping_interval=None, close_timeout=0.1) as endpoint:
        link, _ = await link_to(endpoint, certificates)
        while not link.lost.done():
            link.send((bytes(64 * 1024),))
            await asyncio.sleep(0)
        assert "does not read the data that is sent to it" in str(await link.lost)


@in_event_loop
async def test_no_log_level_shows_the_tokens(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with server(certificates, until_closed, logger=logging.getLogger("quiet")) as endpoint:
            logging.getLogger("quiet").setLevel(logging.INFO)
            link, _ = await link_to(endpoint, certificates)
            link.close()
            await link.lost
    assert "the-access-token" not in caplog.text
    assert "the-access-token" not in repr(ACCESS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the other end closed the connection during the TLS handshake: check that this port is a TLS port"),
        # The beginning of a ServerHello.
        (
            b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03",
            "the other end closed the connection during the TLS handshake",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "what listens there does not speak TLS (WRONG_VERSION_NUMBER): check the port",
        ),
        (b"\x15\x03\x03\x00\x02\x02\x28", "the TLS handshake failed (SSLV3_ALERT_HANDSHAKE_FAILURE)"),
    ],
    ids=["nothing", "half a hello", "no TLS", "an alert"],
)
@pytest.mark.parametrize("fast", [True, False])
def test_what_ends_in_the_tls_handshake_is_a_sentence_and_no_traceback(
    answer: bytes,
    words: str,
    fast: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not fast:
        monkeypatch.setattr(connections, "_fast", None)

    @in_event_loop
    async def check() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(4096)
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as running:
            endpoint = Endpoint("127.0.0.1", running.sockets[0].getsockname()[1])
            with pytest.raises(LinkLost) as caught:
                await connect(Route(endpoint, ssl.create_default_context()), ACCESS, Receiver())
        assert str(caught.value).startswith(f"cannot reach {endpoint}: {words}")

    check()
    assert caplog.records == []
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("days", "words"),
    [
        ((1, 3), r"is not valid yet: it is valid from \S+ \S+ UTC, and this machine's clock says \S+ \S+ UTC: set"),
        (
            (-3, -1),
            r"has expired: it was valid until \S+ \S+ UTC, and this machine's clock says \S+ \S+ UTC: renew",
        ),
    ],
    ids=["not yet valid", "expired"],
)
def test_the_dates_of_a_certificate_are_told(tmp_path: Path, days: tuple[int, int], words: str) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(make_server_certificate(tmp_path / "server.pem", *days))

    @in_event_loop
    async def check() -> None:
        async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(nothing, "127.0.0.1", 0, ssl=tls) as running:
            endpoint = Endpoint("127.0.0.1", running.sockets[0].getsockname()[1])
            with pytest.raises(LinkLost, match=f"^the certificate of {endpoint} {words}") as caught:
                await connect(Route(endpoint, tls_context(str(tmp_path / "server.pem"))), ACCESS, Receiver())
            # A clock that is not set yet is set soon.
            assert caught.value.permanent is ("expired" in words)

    check()
