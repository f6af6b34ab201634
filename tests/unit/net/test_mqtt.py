# SPDX-License-Identifier: GPL-3.0-or-later
"""The MQTT session that reconnects, with brokers that do what Mosquitto never does."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from peers.certificate import make_server_certificate
from peers.event_loop import until
from peers.process import free_port
from tunnelproxy.agent.config import read_config
from tunnelproxy.net import mqtt
from tunnelproxy.net.backoff import Backoff
from tunnelproxy.net.happy_eyeballs import open_socket
from tunnelproxy.net.mqtt import BrokerLogin, MqttSession, try_once
from tunnelproxy.net.mqtt_client import ConnectedSocketClient
from tunnelproxy.service.state.certificates import Certificates, server_context

CONNACK = b"\x20\x02\x00\x00"
CONNACK_NOT_AUTHORIZED = b"\x20\x02\x00\x05"
TOPIC = "$aws/things/pump/tunnels/notify"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Owner:
    """Writes down what a session tells, and lets a test wait for it."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def connected(self) -> None:
        self.told.append("connected")

    def disconnected(self) -> None:
        self.told.append("disconnected")

    def received(self, payload: bytes) -> None:
        self.told.append(payload)

    def published(self, number: int) -> None:
        self.told.append(number)

    async def hears(self, *expected: object) -> None:
        await until(lambda: list(expected) == self.told[: len(expected)])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "Backoff", lambda most: Backoff(0.05, 0.05))
    monkeypatch.setattr(mqtt, "_LOGIN_SECONDS", 2.0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@asynccontextmanager
async def broker(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that answers as it is told; gives its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def session(broker: BrokerLogin, topic: str | None = None) -> AsyncIterator[tuple[MqttSession, Owner]]:
    owner = Owner()
    made = MqttSession(broker, owner, topic)
    task = asyncio.ensure_future(made.run())
    try:
        yield made, owner
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def packet(reader: asyncio.StreamReader) -> bytes:
    """The next packet, which is short."""
    head = await reader.readexactly(2)
    return head + await reader.readexactly(head[1])


async def let_in_and_subscribed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await packet(reader)
    writer.write(CONNACK)
    subscribe = await packet(reader)
    writer.write(b"\x90\x03" + subscribe[2:4] + b"\x01")


def publish(payload: bytes, mid: int = 1) -> bytes:
    body = len(TOPIC).to_bytes(2, "big") + TOPIC.encode() + mid.to_bytes(2, "big") + payload
    return bytes([0x32, len(body)]) + body


def test_a_message_is_acknowledged_after_it_was_handled() -> None:
    acknowledged: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in_and_subscribed(reader, writer)
        writer.write(publish(b"hello", 7))
        acknowledged.append(await packet(reader))
        await reader.read()

    async def test() -> None:
        async with broker(answer) as port, session(BrokerLogin("127.0.0.1", port, "me"), TOPIC) as (_, owner):
            # A broker that has kept the session does not wait for the subscription either.
            await until(lambda: {"connected", b"hello"} == set(owner.told))
            await until(lambda: acknowledged)
        assert acknowledged == [b"\x40\x02\x00\x07"]

    run(test())


def test_the_broker_is_asked_to_keep_the_session_of_a_subscriber_only() -> None:
    clean_session = 0x02
    flags: list[int] = []
    kept: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flags.append((await packet(reader))[9])
        writer.write(CONNACK_NOT_AUTHORIZED)

    async def test() -> None:
        for topic in (TOPIC, None):
            async with broker(answer) as port, session(BrokerLogin("127.0.0.1", port, "me"), topic):
                flags.clear()
                await until(lambda: flags)
                kept.append(flags[0] & clean_session)
        assert kept == [0, clean_session]

    run(test())


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * 40,
        b"\x20\x00",
        CONNACK + b"\x90\x00",
        CONNACK + b"\x32\x01\x00",
        CONNACK + b"\x40\x01\x00",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_a_broker_that_breaks_the_protocol_is_left_and_tried_again(nonsense: bytes) -> None:
    times: list[None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(None)
        if len(times) == 1:
            writer.write(nonsense)
            await reader.read()
        else:
            await let_in_and_subscribed(reader, writer)
            await reader.read()

    async def test() -> None:
        async with broker(answer) as port, session(BrokerLogin("127.0.0.1", port, "me"), TOPIC) as (_, owner):
            await owner.hears("connected")

    run(test())


@pytest.mark.parametrize(
    ("answer_bytes", "complaint"),
    [
        (CONNACK_NOT_AUTHORIZED, "it refuses joe: Not authorized"),
        (b"", "the connection is lost"),
    ],
)
def test_a_failure_that_repeats_is_logged_once(
    caplog: pytest.LogCaptureFixture, answer_bytes: bytes, complaint: str
) -> None:
    times: list[None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        times.append(None)
        writer.write(answer_bytes)

    async def test() -> None:
        async with broker(answer) as port, session(BrokerLogin("127.0.0.1", port, "me", user="joe", password="HIDDEN")):
            await until(lambda: len(times) >= 4)

    run(test())
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert complaint in warnings[0]
    assert "HIDDEN" not in caplog.text


def test_a_refused_subscription_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        subscribe = await packet(reader)
        writer.write(b"\x90\x03" + subscribe[2:4] + b"\x80")
        await reader.read()

    async def test() -> None:
        async with broker(answer) as port, session(BrokerLogin("127.0.0.1", port, "me"), TOPIC) as (_, owner):
            await until(lambda: "does not let" in caplog.text)
            assert owner.told == []

    run(test())
    assert f"it does not let me subscribe to {TOPIC}; see its access rules" in caplog.text


def test_a_broker_that_fell_silent_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt, "_TICK_SECONDS", 0.1)
    # So that this does not count as another client with the same ID.
    monkeypatch.setattr(mqtt, "_TAKEN_OVER_TIMES", 1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in_and_subscribed(reader, writer)
        # It reads the pings, and answers none.
        await reader.read()

    async def test() -> None:
        async with (
            broker(answer) as port,
            session(BrokerLogin("127.0.0.1", port, "me", keepalive=1), TOPIC) as (_, owner),
        ):
            await owner.hears("connected", "disconnected", "connected")

    run(test())
    assert "it has been silent for 2 s" in caplog.text


def test_a_broker_that_closes_one_connection_after_the_other_is_reported_with_the_likely_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times: list[None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_in_and_subscribed(reader, writer)
        await writer.drain()
        times.append(None)

    async def test() -> None:
        async with broker(answer) as port, session(BrokerLogin("127.0.0.1", port, "me"), TOPIC):
            await until(lambda: "it has closed 3 connections of me within 120 s" in caplog.text)
        assert len(times) == 3

    run(test())
    assert caplog.text.count("the connection is lost") == 2
    assert "another client uses the same client ID, and each disconnects the other: stop one of them" in caplog.text


@pytest.mark.parametrize(
    ("days", "words"),
    [((1, 3), "is not valid yet: it is valid from "), ((-3, -1), "has expired: it was valid until ")],
    ids=["not yet valid", "expired"],
)
def test_the_dates_of_a_brokers_certificate_are_reported(
    tmp_path: Path, days: tuple[int, int], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = make_server_certificate(tmp_path / "broker.pem", *days)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        async with broker(answer, server) as port:
            trusted = ssl.create_default_context(cafile=str(file))
            async with session(BrokerLogin("127.0.0.1", port, "me", tls=trusted)):
                await until(lambda: "trying again" in caplog.text)

    run(test())
    assert f"its certificate {words}" in caplog.text
    assert "this machine's clock says " in caplog.text


@pytest.mark.parametrize(
    ("answer_bytes", "words"),
    [
        (b"", "the other end closed the connection during the TLS handshake: check that this port is a TLS port"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there does not speak TLS"),
    ],
)
def test_a_broker_that_closes_the_connection_in_the_tls_handshake_is_reported(
    answer_bytes: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(answer_bytes)

    async def test() -> None:
        trusting = ssl.create_default_context()
        async with broker(answer) as port, session(BrokerLogin("127.0.0.1", port, "me", tls=trusting)):
            await until(lambda: "trying again" in caplog.text)

    run(test())
    assert words in caplog.text


def test_the_owner_learns_which_message_was_acknowledged() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(CONNACK)
        message = await packet(reader)
        at = message.index(b"hello") - 2
        writer.write(b"\x40\x02" + message[at : at + 2])
        await reader.read()

    async def test() -> None:
        async with broker(answer) as port, session(BrokerLogin("127.0.0.1", port, "me")) as (made, owner):
            assert made.publish("a", b"too early") is None
            await owner.hears("connected")
            number = made.publish("a", b"hello")
            assert number is not None
            await owner.hears("connected", number)

    run(test())


@pytest.mark.parametrize("host", ["127.0.0.1", "host.invalid", "a..b"])
def test_a_broker_that_cannot_be_reached_is_tried_again(host: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with session(BrokerLogin(host, free_port(), "me")):
            await until(lambda: "trying again in" in caplog.text)

    run(test())


def test_a_broker_that_resets_each_connection_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def open_and_be_reset(host: str, port: int) -> socket.socket:
        sock = await open_socket(host, port)
        await until(lambda: is_reset(sock))
        return sock

    async def test() -> None:
        monkeypatch.setattr(mqtt, "open_socket", open_and_be_reset)
        async with broker(answer) as port:
            refusal = await try_once(BrokerLogin("127.0.0.1", port, "me"), TOPIC)
        assert refusal is not None
        assert not refusal.startswith("no answer")

    run(test())


def is_reset(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def test_a_connection_that_cannot_be_started_is_reported_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot_start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        async with broker(answer) as port:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", cannot_start)
                assert await try_once(BrokerLogin("127.0.0.1", port, "me"), TOPIC) == "can't start new thread"
            assert f"connecting to the MQTT broker 127.0.0.1:{port} has failed" in caplog.text

    run(test())


def test_a_connection_that_comes_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker would end the newer one, which has the same client ID."""
    monkeypatch.setattr(mqtt, "_LOGIN_SECONDS", 0.1)
    ended: list[None] = []
    shake = threading.Event()
    connect = ConnectedSocketClient.connect

    def connect_late(client: ConnectedSocketClient, *where: Any) -> Any:
        shake.wait(10)
        return connect(client, *where)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.append(None)

    async def test() -> None:
        monkeypatch.setattr(ConnectedSocketClient, "connect", connect_late)
        async with broker(answer) as port:
            held = mqtt._Connection(BrokerLogin("127.0.0.1", port, "me"), TOPIC, print, print)
            held.begin()
            await until(lambda: held.client.connected_socket is not None)
            held.end()
            shake.set()
            await until(lambda: ended)

    run(test())


def test_mutual_tls_on_port_443_uses_the_alpn_name_of_aws(tmp_path: Path) -> None:
    made = Certificates(tmp_path / "keys", tmp_path / "ca")
    made.ensure("127.0.0.1")
    server = server_context(made)
    server.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca"])
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cafile=str(made.ca / "ca.pem"))
    seen: list[tuple[Any, Any]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((writer.get_extra_info("ssl_object").selected_alpn_protocol(), writer.get_extra_info("peercert")))
        await let_in_and_subscribed(reader, writer)
        await reader.read()

    async def test() -> None:
        async with broker(answer, server) as port:
            cert, key = device_certificate(made, tmp_path)
            (tmp_path / "agent.yml").write_text(
                "thing: pump\nservices: {SSH1: 22}\n"
                f"broker: {{host: 127.0.0.1, port: 443, ca: ca/ca.pem, cert: {cert}, key: {key}}}\n"
            )
            configured = read_config(tmp_path / "agent.yml", {}).broker
            here = BrokerLogin("127.0.0.1", port, configured.client_id, tls=configured.tls)
            async with session(here, TOPIC) as (_, owner):
                await owner.hears("connected")
        assert seen[0][0] == "x-amzn-mqtt-ca"
        assert (("commonName", "pump"),) in seen[0][1]["subject"]

    run(test())


def device_certificate(authority: Certificates, folder: Path) -> tuple[Path, Path]:
    """A certificate of the device, as AWS or a company's own CA issues it, and its key."""
    issuer = x509.load_pem_x509_certificate((authority.ca / "ca.pem").read_bytes())
    issuer_key = load_pem_private_key((authority.keys / "ca-key.pem").read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(timezone.utc)
    issued = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pump")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(issuer_key, hashes.SHA256())
    )
    (folder / "device.pem").write_bytes(issued.public_bytes(Encoding.PEM))
    (folder / "device.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "device.pem", folder / "device.key"
