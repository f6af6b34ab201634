# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client sends, up to the other end, which records it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.event_loop import Clock, in_event_loop, until
from tunnelproxy.protocol.framing import Bytes, Message, ProtocolError, frame
from tunnelproxy.protocol.session import Mode, Version
from tunnelproxy.service.data_plane.connected_clients import Client
from tunnelproxy.service.data_plane.frame_rules import BrokenRule, FrameRules
from tunnelproxy.service.data_plane.ingress import Ingress
from tunnelproxy.service.data_plane.relay import Relay
from tunnelproxy.service.model import Tunnel

TUNNEL = Tunnel(1, "t-1", None, "pump", ("SSH1",), 720, True, 0.0, 0.0, 43_200.0)
START = frame(Message(type=Message.STREAM_START, streamId=1, serviceId="SSH1", connectionId=1))
IGNORED = frame(Message(type=42, ignorable=True))


class Bandwidth:
    """Allows nothing more for a second, after each message."""

    def take(self, size: int) -> float:
        return 1.0


class End:
    def __init__(self, mode: Mode) -> None:
        self.client = Client("c-1", None, TUNNEL, None, mode, Version.V3)
        self.calls: list[tuple[bytes, ...]] = []

    def send(self, *messages: Bytes) -> None:
        self.calls.append(tuple(map(bytes, messages)))

    def pause_reading(self) -> None:

        pass

    def resume_reading(self) -> None:
        pass

    def disconnect(self, code: int, reason: str) -> None:
        pass


class Joined:
    """A source that sends, and a destination."""

    def __init__(self, bandwidth: Bandwidth | None = None) -> None:
        self.source, self.destination = End(Mode.SOURCE), End(Mode.DESTINATION)
        self.relay = Relay(bandwidth)  # type: ignore[arg-type]
        self.relay.attach(self.source)
        self.relay.attach(self.destination)
        self.resumed = 0
        self.ingress = Ingress(self.source, self.relay, FrameRules(Mode.SOURCE, ("SSH1",)), self._resume)

    def _resume(self) -> None:
        self.resumed += 1


def data(payload: bytes) -> bytes:
    return frame(Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1), payload)


def test_what_is_received_in_one_read_is_relayed_together() -> None:
    joined = Joined()
    for message in (START, data(b"a"), data(b"b"), data(b"c") + data(b"d")):
        joined.ingress.receive(message)
    assert joined.destination.calls == []
    joined.ingress.pass_on()
    assert joined.destination.calls == [(START, data(b"a"), data(b"b"), data(b"c") + data(b"d"))]
    assert joined.source.client.bytes_received == sum(map(len, joined.destination.calls[0]))


def test_only_whole_frames_are_relayed() -> None:
    joined = Joined()
    joined.ingress.receive(data(b"first") + data(b"second")[:9])
    joined.ingress.receive(data(b"second")[9:] + b"\x00")
    joined.ingress.pass_on()
    assert joined.destination.calls == [(data(b"first"), data(b"second"))]


def test_what_may_be_ignored_is_not_relayed() -> None:
    joined = Joined()
    joined.ingress.receive(IGNORED)
    joined.ingress.receive(data(b"a") + IGNORED + data(b"b"))
    joined.ingress.pass_on()
    assert joined.destination.calls == [(data(b"a") + data(b"b"),)]


@pytest.mark.parametrize(
    ("invalid", "error"),
    [
        (b"\x00\x03\xff\xff\xff", ProtocolError),
        (frame(Message(type=Message.DATA, streamId=0, serviceId="SSH1")), BrokenRule),
        (frame(Message(type=Message.DATA, streamId=1, serviceId="VNC")), BrokenRule),
    ],
)
def test_what_precedes_an_error_is_relayed(invalid: bytes, error: type[Exception]) -> None:
    joined = Joined()
    with pytest.raises(error):
        joined.ingress.receive(data(b"valid") + invalid + data(b"late"))
    joined.ingress.pass_on()
    assert joined.destination.calls == [(data(b"valid"),)]


@in_event_loop
async def test_within_the_bandwidth_messages_are_relayed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    joined = Joined(Bandwidth())
    for payload in (b"a", b"b"):
        joined.ingress.receive(data(payload))
    joined.ingress.pass_on()
    assert joined.destination.calls == [(data(b"a"),)]
    assert joined.ingress.is_waiting
    joined.ingress.pass_on()
    assert joined.destination.calls == [(data(b"a"),)]
    clock.skip(1)
    await until(lambda: joined.resumed == 1)
    assert joined.destination.calls == [(data(b"a"),), (data(b"b"),)]
    assert joined.ingress.is_waiting
    clock.skip(1)
    await until(lambda: joined.resumed == 2)
    assert not joined.ingress.is_waiting


@in_event_loop
async def test_what_waits_when_the_client_disconnects_is_relayed_at_once() -> None:
    joined = Joined(Bandwidth())
    for payload in (b"a", b"b", b"c"):
        joined.ingress.receive(data(payload))
    joined.ingress.pass_on()
    joined.ingress.close()
    assert joined.destination.calls == [(data(b"a"),), (data(b"b"), data(b"c"))]
    assert not joined.ingress.is_waiting
    await asyncio.sleep(0)


@given(st.lists(st.sampled_from([b"a", b"bb", b"ignored"]), max_size=8), st.lists(st.integers(0, 2**20), max_size=6))
def test_any_split_relays_the_same_frames(sent: list[bytes], cuts: list[int]) -> None:
    joined = Joined()
    wire = b"".join(IGNORED if payload == b"ignored" else data(payload) for payload in sent)
    points = sorted(cut % (len(wire) + 1) for cut in cuts)
    for begin, end in zip([0, *points], [*points, len(wire)]):
        joined.ingress.receive(wire[begin:end])
    joined.ingress.pass_on()
    relayed = b"".join(message for call in joined.destination.calls for message in call)
    assert relayed == b"".join(data(payload) for payload in sent if payload != b"ignored")


def test_what_a_client_that_was_replaced_and_has_left_still_sends_is_not_relayed() -> None:
    joined = Joined()
    newer = End(Mode.SOURCE)
    joined.relay.attach(newer)
    joined.relay.detach(newer)
    joined.ingress.receive(data(b"late"))
    joined.ingress.pass_on()
    assert joined.destination.calls == []
