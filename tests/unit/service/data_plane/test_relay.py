# SPDX-License-Identifier: GPL-3.0-or-later
"""Two ends and what passes between them; the ends record what is done to them."""

from __future__ import annotations

from tunnelproxy.protocol.framing import Bytes, FrameReader, Message, frame, parse
from tunnelproxy.protocol.session import Mode, Version
from tunnelproxy.service.data_plane.connected_clients import Client
from tunnelproxy.service.data_plane.relay import Relay
from tunnelproxy.service.model import Tunnel

TUNNEL = Tunnel(1, "t-1", None, "pump", ("SSH1",), 720, True, 0.0, 0.0, 43_200.0)


class RecordingEnd:
    def __init__(self, mode: Mode, version: Version) -> None:
        self.client = Client("c-1", None, TUNNEL, None, mode, version)
        self.sent = b""
        self.paused = False
        self.disconnected: list[tuple[int, str]] = []

    def send(self, *messages: Bytes) -> None:
        self.sent += b"".join(messages)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def disconnect(self, code: int, reason: str) -> None:
        self.disconnected.append((code, reason))

    @property
    def messages(self) -> list[tuple[int, int, str]]:
        parsed = [parse(encoded) for encoded in FrameReader().feed(self.sent)]
        return [(message.type, message.streamId, message.serviceId) for message in parsed]


def relay(*ends: RecordingEnd) -> Relay:
    joined = Relay()
    for end in ends:
        joined.attach(end)
    return joined


def start(stream: int, service: str = "SSH1") -> Message:
    return Message(type=Message.STREAM_START, streamId=stream, serviceId=service, connectionId=1)


def source(version: Version = Version.V3) -> RecordingEnd:
    return RecordingEnd(Mode.SOURCE, version)


def destination(version: Version = Version.V3) -> RecordingEnd:
    return RecordingEnd(Mode.DESTINATION, version)


def test_frames_pass_to_the_other_end() -> None:
    here, there = source(), destination()
    joined = relay(here, there)
    assert joined.consider(here, start(1))
    joined.relay(here, frame(start(1)))
    assert there.messages == [(Message.STREAM_START, 1, "SSH1")]
    assert here.messages == []


def test_a_start_without_a_destination_is_answered_with_a_reset() -> None:
    here = source()
    joined = relay(here)
    assert not joined.consider(here, start(7))
    assert not joined.consider(
        here, Message(type=Message.CONNECTION_START, streamId=7, serviceId="SSH1", connectionId=2)
    )
    assert here.messages == [(Message.STREAM_RESET, 7, "SSH1"), (Message.CONNECTION_RESET, 7, "SSH1")]


def test_data_without_anyone_to_receive_it_is_dropped() -> None:
    here = source()
    assert not relay(here).consider(here, Message(type=Message.DATA, streamId=1, serviceId="SSH1"))
    assert here.messages == []


def test_when_an_end_disconnects_each_live_stream_is_reset_at_the_other() -> None:
    here, there = source(), destination()
    joined = relay(here, there)
    for message in (start(1), start(2), start(5, "HTTP1")):
        joined.consider(here, message)
    assert joined.detach(there)
    assert sorted(here.messages) == [(Message.STREAM_RESET, 2, "SSH1"), (Message.STREAM_RESET, 5, "HTTP1")]


def test_a_connection_of_a_stream_that_began_before_the_destination_came_counts() -> None:
    here, there = source(), destination()
    joined = relay(here, there)
    message = Message(type=Message.CONNECTION_START, streamId=4, serviceId="SSH1", connectionId=2)
    assert joined.consider(here, message)
    assert joined.detach(here)
    assert there.messages == [(Message.STREAM_RESET, 4, "SSH1")]


def test_a_stream_that_was_reset_is_not_reset_again() -> None:
    here, there = source(), destination()
    joined = relay(here, there)
    joined.consider(here, start(1))
    joined.consider(there, Message(type=Message.STREAM_RESET, streamId=1, serviceId="SSH1"))
    joined.detach(there)
    assert here.messages == []


def test_a_stale_reset_does_not_end_the_current_stream() -> None:
    here, there = source(), destination()
    joined = relay(here, there)
    joined.consider(here, start(2))
    joined.consider(there, Message(type=Message.STREAM_RESET, streamId=1, serviceId="SSH1"))
    joined.detach(there)
    assert here.messages == [(Message.STREAM_RESET, 2, "SSH1")]


def test_a_v1_end_is_told_without_service_id() -> None:
    here, there = source(), destination(version=Version.V1)
    joined = relay(here, there)
    joined.consider(here, start(1))
    joined.detach(here)
    assert there.messages == [(Message.STREAM_RESET, 1, "")]


def test_a_replaced_end_is_returned_and_its_streams_end() -> None:
    here, old, new = source(), destination(), destination()
    joined = relay(here, old)
    joined.consider(here, start(1))
    assert joined.attach(new) is old
    assert here.messages == [(Message.STREAM_RESET, 1, "SSH1")]
    assert joined.end(Mode.DESTINATION) is new
    assert not joined.detach(old)
    assert joined.end(Mode.DESTINATION) is new


def test_the_other_end_is_paused_while_the_send_buffer_of_an_end_is_full() -> None:
    here, there = source(), destination()
    joined = relay(here, there)
    joined.pause_writing(there)
    assert (here.paused, there.paused) == (True, False)
    joined.resume_writing(there)
    assert not here.paused


def test_a_paused_end_resumes_when_the_slow_one_disconnects() -> None:
    here, there = source(), destination()
    joined = relay(here, there)
    joined.pause_writing(there)
    joined.detach(there)
    assert not here.paused


def test_an_end_that_joins_is_paused_while_the_send_buffer_of_the_other_is_full() -> None:
    old, new, there = source(), source(), destination()
    joined = relay(old, there)
    joined.pause_writing(there)
    joined.attach(new)
    assert new.paused
    joined.resume_writing(there)
    assert not new.paused


def test_what_a_replaced_end_still_sends_is_not_relayed() -> None:
    here, there, newer = source(), destination(), source()
    joined = relay(here, there)
    joined.attach(newer)
    joined.relay(here, frame(start(1)))
    assert there.messages == []
    joined.relay(newer, frame(start(1)), frame(start(2)))
    assert [stream for _, stream, _ in there.messages] == [1, 2]


def test_an_end_that_was_replaced_pauses_nobody() -> None:
    here, old, new = source(), destination(), destination()
    joined = relay(here, old, new)
    joined.pause_writing(old)
    assert not here.paused
