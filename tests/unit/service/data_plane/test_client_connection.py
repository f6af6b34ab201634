# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients of a data plane in this process: real WebSockets over TLS, and bytes that are none."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import weakref
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from peers.data_plane import RunningDataPlane, running_data_plane
from peers.event_loop import in_event_loop, until
from tunnelproxy.net.socket_options import UnansweredData
from tunnelproxy.protocol.framing import MAX_PAYLOAD, Message, frame
from tunnelproxy.protocol.session import Mode, Version
from tunnelproxy.service.data_plane import client_connection
from tunnelproxy.service.data_plane.server import TUNNEL_CLOSED
from tunnelproxy.service.errors import StoreError
from tunnelproxy.service.events import Connected, Disconnected, Refused
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.state.certificates import Certificates


def start(stream: int = 1) -> Message:
    return Message(type=Message.STREAM_START, streamId=stream, serviceId="SSH1", connectionId=1)


def data(payload: bytes = b"", stream: int = 1, service: str = "SSH1") -> Message:
    return Message(type=Message.DATA, streamId=stream, serviceId=service, connectionId=1, payload=payload)


class Failures:
    """Stands for the log of unexpected errors. pytest would keep the traceback in it, and so the connection."""

    def __init__(self) -> None:
        self.reported: list[str] = []

    def report(self, what: str, error: BaseException) -> None:
        self.reported.append(repr(error))


async def answer_to(running: RunningDataPlane, sent: bytes) -> bytes:
    """What the data plane answers to bytes, until it closes the connection."""
    reader, writer = await running.open_tls()
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


# Handshakes.


@pytest.mark.parametrize("sent", [b"", b"GET /tunnel HTTP/1.1\r\nHost: x\r\n"])
@in_event_loop
async def test_a_client_that_does_not_complete_its_request_is_cut_off(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(client_connection, "HANDSHAKE_DEADLINE", 0.2)
    async with running_data_plane(certificates, tmp_path) as running:
        assert await answer_to(running, sent) == b""


@in_event_loop
async def test_a_request_that_does_not_end_is_rejected_at_4_kib(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        answer = await answer_to(running, b"GET /tunnel HTTP/1.1\r\nx: " + b"y" * 4096)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"x-iotops-cause: bad-request" in answer


@in_event_loop
async def test_a_client_that_does_not_speak_http_is_cut_off(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        assert await answer_to(running, b"\x00\x01\r\n\r\n") == b""


@in_event_loop
async def test_a_request_that_arrives_byte_by_byte_is_answered(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        reader, writer = await running.open_tls()
        for byte in b"GET /elsewhere HTTP/1.1\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await reader.readline()) == b"HTTP/1.1 400 Bad Request\r\n"
        writer.close()


@in_event_loop
async def test_a_wrong_token_is_rejected_with_its_cause(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        with pytest.raises(InvalidStatus) as caught:
            await running.connect(Mode.SOURCE, headers={"access-token": "unknown"})
        response = caught.value.response
        assert response.status_code == 403
        assert response.headers["x-iotops-cause"] == "token-unknown"
        (event,) = running.events
        assert isinstance(event, Refused)
        assert (event.channel, event.address) == (response.headers["channel-id"], "127.0.0.1")


@in_event_loop
async def test_a_request_that_websockets_rejects_does_not_use_the_token(
    certificates: Certificates, tmp_path: Path
) -> None:
    request = b"GET /tunnel?local-proxy-mode=source HTTP/1.1\r\nHost: x\r\naccess-token: source-token\r\n\r\n"
    async with running_data_plane(certificates, tmp_path) as running:
        answer = await answer_to(running, request)
        assert b"x-iotops-cause: bad-request" in answer
        assert isinstance(running.events[0], Refused)
        assert running.events[0].reason == "Invalid WebSocket handshake."
        await running.connect(Mode.SOURCE, headers={"client-token": "a" * 32})


@pytest.mark.parametrize(
    ("error", "status", "reported"),
    [(StoreError, 503, []), (RuntimeError, 500, ["RuntimeError('a failure')"])],
)
def test_an_error_of_the_service_is_one_that_clients_retry(
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    status: int,
    reported: list[str],
) -> None:
    failures = Failures()

    def fail(*_: object) -> None:
        raise error("a failure")

    @in_event_loop
    async def check() -> None:
        async with running_data_plane(certificates, tmp_path, failures=failures) as running:
            monkeypatch.setattr(running.store, "mark_token_used", fail)
            with pytest.raises(InvalidStatus) as caught:
                await running.connect(Mode.SOURCE)
            assert caught.value.response.status_code == status
            assert caught.value.response.headers["x-iotops-cause"] == "unavailable"

    check()
    assert failures.reported == reported


@pytest.mark.parametrize(
    ("services", "mode", "offered", "agreed"),
    [
        (("SSH1",), Mode.SOURCE, (Version.V1, Version.V2, Version.V3), Version.V3),
        (("SSH1",), Mode.DESTINATION, (Version.V2,), Version.V2),
        # No message may have a service ID there.
        ((), Mode.SOURCE, (Version.V3, Version.V2, Version.V1), Version.V1),
        ((), Mode.SOURCE, (Version.V3,), Version.V3),
        ((), Mode.DESTINATION, (Version.V3, Version.V1), Version.V3),
    ],
)
def test_the_newest_version_is_agreed_on_except_for_a_source_without_services(
    certificates: Certificates,
    tmp_path: Path,
    services: tuple[str, ...],
    mode: Mode,
    offered: tuple[Version, ...],
    agreed: Version,
) -> None:
    @in_event_loop
    async def check() -> None:
        async with running_data_plane(certificates, tmp_path, services) as running:
            client = await running.connect(mode, offered)
            assert client.websocket.subprotocol == f"aws.iot.securetunneling-{agreed.value}.0"
            (event,) = running.events
            assert isinstance(event, Connected)
            assert (event.mode, event.version, event.tunnel) == (mode.value, agreed.value, running.tunnel.tunnel_id)
            if agreed is not Version.V1:
                assert (await client.receive()).availableServiceIds == list(services)

    check()


# Messages.


@in_event_loop
async def test_what_one_end_sends_arrives_at_the_other(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        source, destination = await running.connect_both()
        await source.send(start(), data(b"hello"))
        assert [await destination.receive(), await destination.receive()] == [start(), data(b"hello")]
        for size in (1, 1000, MAX_PAYLOAD, MAX_PAYLOAD, MAX_PAYLOAD):
            await destination.send(data(bytes(size)))
            assert await source.receive() == data(bytes(size))


@in_event_loop
async def test_bytes_are_counted_and_the_end_is_recorded(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        source, destination = await running.connect_both()
        await source.send(start(), data(b"hello"))
        await destination.receive()
        await source.websocket.close(1000, "bye")
        await until(lambda: len(running.events) == 3)
        ended = running.events[-1]
        assert isinstance(ended, Disconnected)
        assert (ended.mode, ended.outcome) == ("source", "1000 bye")
        sent = len(start().SerializeToString()) + len(data(b"hello").SerializeToString()) + 4
        assert ended.bytes_received == sent
        assert ended.bytes_sent == len(b"SSH1") + len(b"HTTP1") + 8


@in_event_loop
async def test_a_connection_that_breaks_has_no_close_code(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        source = await running.connect(Mode.SOURCE)
        source.websocket.transport.abort()
        await until(lambda: len(running.events) == 2)
        assert isinstance(running.events[-1], Disconnected)
        assert running.events[-1].outcome == "connection lost"


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        ("text", 1003, "only binary messages are allowed"),
        (b"\x00\x03\xff\xff\xff", 1002, "a frame that is not a protobuf Message"),
        (b"\x00\x04\x08\x01\x10\x00", 1008, "stream ID 0 is invalid"),
    ],
)
def test_a_client_that_breaks_the_protocol_is_disconnected(
    certificates: Certificates,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    sent: str | bytes,
    code: int,
    reason: str,
) -> None:
    @in_event_loop
    async def check() -> None:
        async with running_data_plane(certificates, tmp_path) as running:
            source, _ = await running.connect_both()
            await source.websocket.send(sent)
            assert await source.closed() == (code, reason)

    check()
    assert f"closed for breaking the protocol: {reason}" in caplog.text


@in_event_loop
async def test_what_comes_before_a_broken_rule_is_relayed(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        source, destination = await running.connect_both()
        await source.send(start(), data(b"valid"), data(stream=0))
        assert [(await destination.receive()).type for _ in range(2)] == [Message.STREAM_START, Message.DATA]
        assert (await source.closed())[0] == 1008


# Flow, and ends.


@in_event_loop
async def test_a_client_that_does_not_read_pauses_the_other(certificates: Certificates, tmp_path: Path) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        source, destination = await running.connect_both()
        destination.websocket.transport.pause_reading()
        connections = running.data_plane._connections
        sent = 0

        def is_paused() -> bool:
            return any(connection._paused for connection in connections)

        async def send_until_told() -> None:
            nonlocal sent
            while not was_paused:
                sent += 1
                await source.send(data(bytes(MAX_PAYLOAD), sent))

        was_paused = False
        sending = asyncio.create_task(send_until_told())
        await until(is_paused)
        was_paused = True
        destination.websocket.transport.resume_reading()
        assert [(await destination.receive()).streamId for _ in range(sent)] == list(range(1, sent + 1))
        await sending
        assert not is_paused()


@in_event_loop
async def test_a_tunnel_is_no_faster_than_its_bandwidth(certificates: Certificates, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with running_data_plane(certificates, tmp_path, limits=Limits(bandwidth=1_000_000)) as running:
        source, destination = await running.connect_both()
        await source.send(start())
        await destination.receive()
        began = loop.time()
        for _ in range(10):
            await source.send(data(bytes(50_000)))
        for _ in range(10):
            await destination.receive()
        # A quarter of a second's worth goes at once, and so does the message that exceeds it.
        assert 0.15 < loop.time() - began < 5


@in_event_loop
async def test_a_client_that_reads_nothing_of_what_is_sent_unasked_is_cut_off(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        source = await running.connect(Mode.SOURCE)
        source.websocket.transport.pause_reading()
        # The kernel would take megabytes for it, which are made message by message.
        sock = source.websocket.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        # Each is answered with a reset, because there is no destination.
        starts = b"".join(frame(start(stream)) for stream in range(1, 5000))

        async def send_without_end() -> None:
            while True:
                await source.websocket.send(starts)
                # A transport that is closing takes everything at once: let it report the loss.
                await asyncio.sleep(0)

        with pytest.raises(ConnectionClosed):
            await send_without_end()
    assert "cut off: it does not read the data that is sent to it" in caplog.text


@in_event_loop
async def test_a_client_whose_machine_is_gone_is_cut_off(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tunnelproxy.service.data_plane.server._LOOK_SECONDS", 0.05)
    with caplog.at_level(logging.INFO):
        async with running_data_plane(certificates, tmp_path) as running:
            source = await running.connect(Mode.SOURCE)
            # Not earlier: a slow handshake would be cut off too.
            monkeypatch.setattr(UnansweredData, "seconds", lambda unanswered: 61.0)
            await source.closed()
    assert "lost: the client has acknowledged nothing for 61 s" in caplog.text


@in_event_loop
async def test_a_client_that_does_not_answer_a_close_is_cut_off(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, "_CLOSE_DEADLINE", 0.1)
    async with running_data_plane(certificates, tmp_path) as running:
        source = await running.connect(Mode.SOURCE)
        source.websocket.transport.pause_reading()
        running.data_plane.close_tunnel(running.tunnel.tunnel_id, TUNNEL_CLOSED)
        await until(lambda: any(isinstance(event, Disconnected) for event in running.events))
        source.websocket.transport.abort()


@in_event_loop
async def test_a_connection_that_has_ended_is_freed_without_a_garbage_collection(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with running_data_plane(certificates, tmp_path) as running:
        source, destination = await running.connect_both()
        await source.send(start(), data(b"hello"))
        await destination.receive()
        (connection,) = (each for each in running.data_plane._connections if each.client.mode is Mode.SOURCE)
        freed = weakref.ref(connection)
        del connection
        gc.disable()
        try:
            await source.websocket.close()
            await until(lambda: freed() is None)
        finally:
            gc.enable()
