# SPDX-License-Identifier: GPL-3.0-or-later
"""The data plane's rules, tested over a real socket with the websockets client."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from peers.service import TunnelingService, closing
from tunnelproxy.protocol.framing import FrameReader, Message, frame, parse

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService() as running:
        yield running


class Tunnel:
    """A tunnel with two services, and clients that join it."""

    def __init__(self, service: TunnelingService, api: Any, stack: ExitStack, *services: str) -> None:
        self.service = service
        self.api = api
        self._stack = stack
        config = {"destinationConfig": {"services": list(services)}} if services else {}
        opened = api.open_tunnel(**config)
        self.tunnel_id = opened["tunnelId"]
        self.tokens = {mode: opened[f"{mode}AccessToken"] for mode in ("source", "destination")}

    def join(self, mode: str, *, token: str = "", version: int = 3, **settings: Any) -> Client:
        connection = self.service.connect(mode, token or self.tokens[mode], version=version, **settings)
        return Client(self._stack.enter_context(connection))

    def both(self) -> tuple[Client, Client]:
        source, destination = self.join("source"), self.join("destination")
        assert source.receive().type == destination.receive().type == Message.SERVICE_IDS
        return source, destination

    def refusal(self, mode: str, **settings: Any) -> Any:
        with pytest.raises(InvalidStatus) as caught:
            self.join(mode, **settings)
        response = caught.value.response
        assert 400 <= response.status_code < 500
        assert response.headers["channel-id"]
        return response

    def states(self) -> tuple[str, str]:
        tunnel = self.api.describe_tunnel(tunnelId=self.tunnel_id)["tunnel"]
        return tunnel["sourceConnectionState"]["status"], tunnel["destinationConnectionState"]["status"]


def frame_of(message: Message) -> bytes:
    """A frame with any message, even one that is too large."""
    encoded = message.SerializeToString()
    return len(encoded).to_bytes(2, "big") + encoded


class Client:
    """A WebSocket that sends and receives protocol messages."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._reader = FrameReader()
        self._waiting: list[Message] = []

    def send(self, kind: int, stream: int = 1, *, service: str = "SSH1", **fields: Any) -> None:
        self.connection.send(frame(Message(type=kind, streamId=stream, serviceId=service, **fields)))

    def receive(self) -> Message:
        while not self._waiting:
            self._waiting += [parse(encoded) for encoded in self._reader.feed(self.connection.recv(timeout=10))]
        return self._waiting.pop(0)

    def closing(self) -> tuple[int, str]:
        return closing(self.connection)


@pytest.fixture(scope="module")
def api(service: TunnelingService) -> Any:
    return service.boto3_client()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as connections:
        yield connections


@pytest.fixture
def tunnel(service: TunnelingService, api: Any, stack: ExitStack) -> Tunnel:
    return Tunnel(service, api, stack, "SSH1", "HTTP1")


@pytest.fixture
def nameless(service: TunnelingService, api: Any, stack: ExitStack) -> Tunnel:
    return Tunnel(service, api, stack)


# Handshake


@pytest.mark.parametrize("version", [2, 3])
def test_the_first_message_names_the_services(tunnel: Tunnel, version: int) -> None:
    client = tunnel.join("source", version=version)
    assert client.connection.subprotocol == f"aws.iot.securetunneling-{version}.0"
    assert client.connection.response.headers["channel-id"]
    first = client.receive()
    assert (first.type, list(first.availableServiceIds)) == (Message.SERVICE_IDS, ["SSH1", "HTTP1"])


def test_the_highest_protocol_offered_is_chosen(tunnel: Tunnel) -> None:
    offered = ["aws.iot.securetunneling-1.0", "other", "aws.iot.securetunneling-3.0", "aws.iot.securetunneling-2.0"]
    client = tunnel.join("source", subprotocols=offered)
    assert client.connection.subprotocol == "aws.iot.securetunneling-3.0"


def test_in_a_tunnel_without_services_a_source_may_speak_v1(nameless: Tunnel) -> None:
    offered = [f"aws.iot.securetunneling-{version}.0" for version in (3, 2, 1)]
    source = nameless.join("source", subprotocols=offered)
    assert source.connection.subprotocol == "aws.iot.securetunneling-1.0"
    destination = nameless.join("destination", version=1)
    source.send(Message.STREAM_START, 9, service="")
    # A V1 end receives no list of services; its first message is its peer's.
    assert destination.receive() == Message(type=Message.STREAM_START, streamId=9)


def test_in_a_tunnel_without_services_a_destination_adapts_to_its_source(nameless: Tunnel) -> None:
    offered = [f"aws.iot.securetunneling-{version}.0" for version in (3, 2, 1)]
    assert nameless.join("destination", subprotocols=offered).connection.subprotocol == "aws.iot.securetunneling-3.0"


@pytest.mark.parametrize("destination_version", [1, 2, 3])
@pytest.mark.parametrize("source_version", [1, 2, 3])
def test_a_tunnel_without_services_supports_every_version(
    nameless: Tunnel, source_version: int, destination_version: int
) -> None:
    """AWS's reference 3.3.1 offers subprotocol 3.0 only; its messages have no service ID there."""
    ends = {"source": source_version, "destination": destination_version}
    source, destination = (nameless.join(mode, version=version) for mode, version in ends.items())
    for end, version in ((source, source_version), (destination, destination_version)):
        assert end.connection.subprotocol == f"aws.iot.securetunneling-{version}.0"
        if version > 1:
            assert end.receive() == Message(type=Message.SERVICE_IDS)
    source.send(Message.STREAM_START, 9, service="", connectionId=1)
    assert destination.receive() == Message(type=Message.STREAM_START, streamId=9, connectionId=1)
    destination.send(Message.DATA, 9, service="", connectionId=1, payload=b"SSH-2.0-x")
    assert source.receive().payload == b"SSH-2.0-x"
    destination.connection.close()
    assert source.receive() == Message(type=Message.STREAM_RESET, streamId=9)


def test_a_used_token_is_refused_with_aws_s_message(tunnel: Tunnel) -> None:
    tunnel.join("source")
    refused = tunnel.refusal("source")
    assert (refused.status_code, refused.headers["x-iotops-cause"]) == (400, "token-used")
    assert refused.body == b"Invalid access token: The access token was previously used and can not be used again."


def test_a_client_token_makes_an_access_token_reusable(tunnel: Tunnel) -> None:
    mine, other = "m" * 32, "o" * 32
    first = tunnel.join("source", client_token=mine)
    tunnel.join("source", client_token=mine)
    assert first.closing() == (1008, "Replaced by a newer connection")
    assert tunnel.refusal("source", client_token=other).headers["x-iotops-cause"] == "token-used"
    assert tunnel.refusal("source").headers["x-iotops-cause"] == "token-used"


def test_each_refusal_has_its_cause(tunnel: Tunnel) -> None:
    causes = {
        "token-unknown": tunnel.refusal("source", token="other"),
        "wrong-mode": tunnel.refusal("source", token=tunnel.tokens["destination"]),
        "bad-request": tunnel.refusal("elsewhere", token=tunnel.tokens["source"]),
    }
    tunnel.api.close_tunnel(tunnelId=tunnel.tunnel_id)
    causes["tunnel-closed"] = tunnel.refusal("source")
    for cause, response in causes.items():
        assert response.headers["x-iotops-cause"] == cause
        assert response.body.startswith(b"Invalid ")
    assert len({bytes(response.body) for response in causes.values()}) == len(causes)


def test_an_unknown_subprotocol_is_a_bad_request(tunnel: Tunnel) -> None:
    for offered in (["chat"], None):
        refused = tunnel.refusal("source", subprotocols=offered)
        assert (refused.status_code, refused.headers["x-iotops-cause"]) == (400, "bad-request")
    tunnel.join("source")


def test_a_request_over_4_kib_is_refused(tunnel: Tunnel) -> None:
    headers = {"access-token": tunnel.tokens["source"], "x-filler": "x" * 4096}
    refused = tunnel.refusal("source", additional_headers=headers)
    assert b"larger than 4096 bytes" in refused.body


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_old_tls_is_refused(service: TunnelingService) -> None:
    host, _, port = service.data.rpartition(":")
    context = ssl.create_default_context(capath=service.ca)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, int(port))) as plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain, server_hostname=host)


# Relay


def test_messages_pass_both_ways_unchanged(tunnel: Tunnel) -> None:
    source, destination = tunnel.both()
    source.send(Message.STREAM_START, 3, connectionId=1)
    source.send(Message.CONNECTION_START, 3, connectionId=2)
    source.send(Message.DATA, 3, connectionId=2, payload=b"\x00" * 64512)
    destination_saw = [destination.receive() for _ in range(3)]
    assert [(m.type, m.streamId, m.connectionId) for m in destination_saw] == [(2, 3, 1), (6, 3, 2), (1, 3, 2)]
    assert destination_saw[2].payload == b"\x00" * 64512
    destination.send(Message.CONNECTION_RESET, 3, connectionId=2)
    assert source.receive() == Message(type=Message.CONNECTION_RESET, streamId=3, serviceId="SSH1", connectionId=2)


def test_a_message_split_anywhere_arrives_complete(tunnel: Tunnel) -> None:
    source, destination = tunnel.both()
    start = frame(Message(type=Message.STREAM_START, streamId=1, serviceId="SSH1", connectionId=1))
    for byte in start:
        source.connection.send(bytes([byte]))
    source.connection.send([start[:3], start[3:]])
    assert destination.receive() == destination.receive() == parse(start[2:])


def test_a_fragmented_message_arrives_like_a_whole_one(tunnel: Tunnel) -> None:
    """Fragments as AWS's reference sends them, and other valid ones: empty fragments, and pings in between."""
    source, destination = tunnel.both()
    start = frame(Message(type=Message.STREAM_START, streamId=1, serviceId="SSH1", connectionId=1))
    payload = os.urandom(64_512)
    wire = start + frame(Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1), payload)

    def fragments() -> Iterator[bytes]:
        for begin in range(0, len(wire), 4096):
            yield wire[begin : begin + 4096]
            yield b""
            source.connection.ping()

    source.connection.send(fragments())
    assert destination.receive() == parse(start[2:])
    assert destination.receive().payload == payload


def test_describe_tunnel_returns_the_states_of_both_ends(tunnel: Tunnel) -> None:
    assert tunnel.states() == ("DISCONNECTED", "DISCONNECTED")
    source, _ = tunnel.both()
    assert tunnel.states() == ("CONNECTED", "CONNECTED")
    source.connection.close()
    assert tunnel.states() == ("DISCONNECTED", "CONNECTED")


def test_pings_are_answered(tunnel: Tunnel) -> None:
    assert tunnel.join("source").connection.ping(b"payload").wait(10)


def test_a_stream_start_without_a_destination_is_reset_immediately(tunnel: Tunnel) -> None:
    source = tunnel.join("source")
    source.receive()
    source.send(Message.STREAM_START, 5, connectionId=1)
    source.send(Message.CONNECTION_START, 5, connectionId=2)
    reset, connection_reset = source.receive(), source.receive()
    assert (reset.type, reset.streamId, reset.serviceId) == (Message.STREAM_RESET, 5, "SSH1")
    assert (connection_reset.type, connection_reset.connectionId) == (Message.CONNECTION_RESET, 2)


def test_the_other_end_is_notified_when_one_disconnects(tunnel: Tunnel) -> None:
    source, destination = tunnel.both()
    source.send(Message.STREAM_START, 5, connectionId=1)
    destination.receive()
    destination.connection.close()
    assert source.receive() == Message(type=Message.STREAM_RESET, streamId=5, serviceId="SSH1")


def test_the_other_end_is_notified_when_one_is_replaced(tunnel: Tunnel) -> None:
    source = tunnel.join("source")
    source.receive()
    destination = tunnel.join("destination", client_token="d" * 32)
    source.send(Message.STREAM_START, 6, connectionId=1)
    destination.receive()
    assert destination.receive().type == Message.STREAM_START
    replacement = tunnel.join("destination", client_token="d" * 32)
    assert source.receive() == Message(type=Message.STREAM_RESET, streamId=6, serviceId="SSH1")
    assert destination.closing() == (1008, "Replaced by a newer connection")
    replacement.receive()
    source.send(Message.STREAM_START, 7, connectionId=1)
    assert replacement.receive().streamId == 7
    assert tunnel.states() == ("CONNECTED", "CONNECTED")


def test_a_stalled_receiver_slows_its_sender_down_and_loses_nothing(service: TunnelingService, tunnel: Tunnel) -> None:
    source, destination = tunnel.both()
    content = os.urandom(20 * MEGABYTE)
    source.send(Message.STREAM_START, connectionId=1)
    sender = threading.Thread(target=send_all, args=(source, content), daemon=True)
    sender.start()
    # The receiver does not read, so the sender stops; otherwise it would have finished by then.
    sender.join(1.0)
    assert sender.is_alive()
    assert destination.receive().type == Message.STREAM_START
    assert digest_of(destination, len(content)) == hashlib.sha256(content).hexdigest()
    sender.join(10)
    assert not sender.is_alive()
    assert peak_memory(service.pid) < 80 * MEGABYTE


def send_all(client: Client, content: bytes) -> None:
    for start in range(0, len(content), 60_000):
        client.send(Message.DATA, connectionId=1, payload=content[start : start + 60_000])


def digest_of(client: Client, size: int) -> str:
    hasher, count = hashlib.sha256(), 0
    while count < size:
        payload = client.receive().payload
        hasher.update(payload)
        count += len(payload)
    return hasher.hexdigest()


def peak_memory(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


# Rules


@pytest.mark.parametrize(
    ("mode", "message", "closed"),
    [
        (
            "source",
            Message(type=Message.SERVICE_IDS),
            (1008, "only the service may send SESSION_RESET and SERVICE_IDS"),
        ),
        ("source", Message(type=Message.DATA, serviceId="SSH1"), (1008, "stream ID 0 is invalid")),
        (
            "source",
            Message(type=Message.DATA, streamId=1, serviceId="VNC"),
            (1008, "a service ID that the tunnel does not have"),
        ),
        (
            "destination",
            Message(type=Message.STREAM_START, streamId=1, serviceId="SSH1"),
            (1008, "a destination must not start streams or connections"),
        ),
        ("source", Message(type=99), (1008, "unknown message type that is not ignorable")),  # type: ignore[arg-type]
    ],
)
def test_a_forbidden_message_closes_the_connection(
    tunnel: Tunnel, mode: str, message: Message, closed: tuple[int, str]
) -> None:
    client = tunnel.join(mode)
    client.connection.send(frame(message))
    assert client.closing() == closed


def test_mixing_messages_with_and_without_service_closes_the_connection(tunnel: Tunnel) -> None:
    source, _ = tunnel.both()
    source.send(Message.STREAM_START)
    source.send(Message.DATA, service="")
    assert source.closing() == (1008, "messages with and without service ID in one connection")


def test_an_unknown_ignorable_message_is_not_forwarded(tunnel: Tunnel) -> None:
    source, destination = tunnel.both()
    source.send(99, ignorable=True)
    source.send(Message.STREAM_START, 4)
    assert destination.receive().type == Message.STREAM_START


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("text", 1003),
        (b"\x00\x02\xff\xff", 1002),
        (b"\x00\x03\x98\x06\x01", 1002),  # field 99
        (frame_of(Message(type=Message.DATA, streamId=1, serviceId="SSH1", payload=b"x" * 64_513)), 1002),
        (b"\x00" * 131_077, 1009),
    ],
    ids=["text", "no protobuf", "unknown field", "payload too long", "too long"],
)
def test_an_invalid_message_closes_the_connection(tunnel: Tunnel, sent: str | bytes, code: int) -> None:
    client = tunnel.join("source")
    client.connection.send(sent)
    assert client.closing()[0] == code


def test_the_longest_websocket_message_is_accepted(tunnel: Tunnel) -> None:
    source, destination = tunnel.both()
    one = frame(Message(type=Message.DATA, streamId=1, serviceId="SSH1", payload=b"x" * 30_000))
    source.connection.send((one * 5)[:131_076])
    source.connection.send((one * 5)[131_076:])
    assert [len(destination.receive().payload) for _ in range(5)] == [30_000] * 5


# The end


def test_closing_the_tunnel_disconnects_both_ends_without_a_session_reset(tunnel: Tunnel) -> None:
    """AWS's reference does not exit when a SESSION_RESET comes before the close frame."""
    clients = tunnel.both()
    tunnel.api.close_tunnel(tunnelId=tunnel.tunnel_id, delete=True)
    for client in clients:
        assert client.closing() == (1000, "Tunnel closed")


def test_closing_the_tunnel_loses_no_earlier_data(tunnel: Tunnel) -> None:
    source, destination = tunnel.both()
    source.send(Message.STREAM_START, 1, connectionId=1)
    destination.send(Message.DATA, 1, connectionId=1, payload=b"last words")
    assert destination.receive().type == Message.STREAM_START
    assert source.receive().payload == b"last words"
    tunnel.api.close_tunnel(tunnelId=tunnel.tunnel_id)
    assert source.closing() == destination.closing() == (1000, "Tunnel closed")


def test_rotation_disconnects_only_the_client_with_the_old_token(tunnel: Tunnel) -> None:
    source, destination = tunnel.both()
    source.send(Message.STREAM_START, 8, connectionId=1)
    destination.receive()
    rotated = tunnel.api.rotate_tunnel_access_token(tunnelId=tunnel.tunnel_id, clientMode="SOURCE")
    assert source.closing() == (1008, "Access token revoked")
    assert destination.receive() == Message(type=Message.STREAM_RESET, streamId=8, serviceId="SSH1")
    assert tunnel.refusal("source").headers["x-iotops-cause"] == "token-unknown"
    tunnel.join("source", token=rotated["sourceAccessToken"])
    assert tunnel.states() == ("CONNECTED", "CONNECTED")
