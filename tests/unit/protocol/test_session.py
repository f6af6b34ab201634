# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tunnelproxy.protocol.framing import FrameReader, Message, ProtocolError, frame, parse
from tunnelproxy.protocol.session import (
    MAX_SERVICES,
    Connection,
    ConnectionClosed,
    ConnectionRequested,
    DataReceived,
    Mode,
    PeerVersionFound,
    ServicesOffered,
    Session,
    Version,
)

EVENTS = (ServicesOffered, ConnectionRequested, DataReceived, ConnectionClosed, PeerVersionFound)


def sent_by(session: Session) -> list[Message]:
    return [parse(encoded) for encoded in FrameReader().feed(b"".join(session.data_to_send()))]


def received(session: Session, *messages: Message) -> list[object]:
    return list(session.receive(b"".join(frame(message) for message in messages)))


def start(stream: int = 1, connection: int = 1, service: str = "SSH1") -> Message:
    return Message(type=Message.STREAM_START, streamId=stream, serviceId=service, connectionId=connection)


def about(kind: Message.Type, stream: int = 1, connection: int = 1, payload: bytes = b"") -> Message:
    return Message(type=kind, streamId=stream, serviceId="SSH1", connectionId=connection, payload=payload)


def test_the_first_connection_starts_a_stream_and_the_next_join_it() -> None:
    source = Session(Mode.SOURCE)
    assert source.open("SSH1") == Connection("SSH1", 1, 1)
    assert source.open("SSH1") == Connection("SSH1", 1, 2)
    assert source.open("HTTP1") == Connection("HTTP1", 1, 1)
    assert [(m.type, m.serviceId, m.streamId, m.connectionId) for m in sent_by(source)] == [
        (Message.STREAM_START, "SSH1", 1, 1),
        (Message.CONNECTION_START, "SSH1", 1, 2),
        (Message.STREAM_START, "HTTP1", 1, 1),
    ]


def test_a_new_stream_starts_once_the_last_connection_has_ended() -> None:
    source = Session(Mode.SOURCE)
    source.close(source.open("SSH1"))
    assert source.open("SSH1") == Connection("SSH1", 2, 1)


def test_stream_ids_begin_again_at_one_rather_than_overflow() -> None:
    source = Session(Mode.SOURCE)
    source.open("SSH1")
    source._streams["SSH1"].stream_id = 2**31 - 1
    assert received(source, about(Message.STREAM_RESET, stream=2**31 - 1))
    assert source.open("SSH1").stream_id == 1


def test_what_still_comes_from_before_a_reconnect_is_not_taken_for_a_new_streams() -> None:
    before = Session(Mode.SOURCE)
    for service in ("SSH1", "SSH1", "HTTP1"):
        before.close(before.open(service))
    source = Session(Mode.SOURCE, first_stream_id=before.next_stream_id)
    source.open("SSH1")
    events = received(source, about(Message.DATA, stream=1, payload=b"old"), about(Message.STREAM_RESET, stream=2))
    assert events == [PeerVersionFound(Version.V3)]
    assert source.open("HTTP1") == Connection("HTTP1", 3, 1)
    assert source.next_stream_id == 4


def test_data_goes_out_with_all_the_ids() -> None:
    source = Session(Mode.SOURCE)
    connection = source.open("SSH1")
    source.data_to_send()
    source.send(connection, b"hello")
    assert sent_by(source) == [about(Message.DATA, payload=b"hello")]
    source.close(connection)
    again = source.open("SSH1")
    source.data_to_send()
    source.send(again, b"")
    assert sent_by(source) == [about(Message.DATA, stream=2)]


def test_nothing_goes_out_for_a_connection_that_has_ended() -> None:
    source = Session(Mode.SOURCE)
    connection = source.open("SSH1")
    source.close(connection)
    source.data_to_send()
    source.send(connection, b"late")
    source.close(connection)
    assert source.data_to_send() == []


def test_a_destination_reports_starts_data_and_resets_in_order() -> None:
    destination = Session(Mode.DESTINATION)
    events = received(
        destination,
        start(),
        about(Message.DATA, payload=b"a"),
        about(Message.CONNECTION_START, connection=2),
        about(Message.DATA, connection=2, payload=b"b"),
        about(Message.CONNECTION_RESET, connection=1),
        about(Message.STREAM_RESET),
    )
    one, two = Connection("SSH1", 1, 1), Connection("SSH1", 1, 2)
    assert events == [
        ConnectionRequested(one),
        DataReceived(one, b"a"),
        ConnectionRequested(two),
        DataReceived(two, b"b"),
        ConnectionClosed(one),
        ConnectionClosed(two),
    ]


def test_a_new_stream_ends_the_older_one_of_its_service_only() -> None:
    destination = Session(Mode.DESTINATION)
    received(destination, start(stream=1), start(stream=1, service="HTTP1"))
    assert received(destination, start(stream=2)) == [
        ConnectionClosed(Connection("SSH1", 1, 1)),
        ConnectionRequested(Connection("SSH1", 2, 1)),
    ]
    assert destination.is_live(Connection("HTTP1", 1, 1))


@pytest.mark.parametrize(
    "stale",
    [
        about(Message.DATA, stream=7, payload=b"x"),
        about(Message.DATA, connection=7, payload=b"x"),
        about(Message.CONNECTION_RESET, stream=7),
        about(Message.CONNECTION_RESET, connection=7),
        about(Message.STREAM_RESET, stream=7),
    ],
)
def test_stale_messages_are_ignored(stale: Message) -> None:
    destination = Session(Mode.DESTINATION)
    received(destination, start())
    assert received(destination, stale) == []
    assert destination.is_live(Connection("SSH1", 1, 1))


def test_a_second_start_of_a_live_connection_is_answered_with_its_reset() -> None:
    destination = Session(Mode.DESTINATION)
    received(destination, start())
    assert received(destination, about(Message.CONNECTION_START)) == [ConnectionClosed(Connection("SSH1", 1, 1))]
    assert sent_by(destination) == [about(Message.CONNECTION_RESET)]


def test_a_connection_start_of_an_unknown_stream_is_reset_rather_than_left_hanging() -> None:
    destination = Session(Mode.DESTINATION)
    assert received(destination, about(Message.CONNECTION_START, stream=4, connection=2)) == []
    assert sent_by(destination) == [about(Message.CONNECTION_RESET, stream=4, connection=2)]


def test_no_connection_id_means_the_first_and_is_answered_in_kind() -> None:
    destination = Session(Mode.DESTINATION)
    assert received(destination, start(connection=0)) == [ConnectionRequested(Connection("SSH1", 1, 1))]
    destination.send(Connection("SSH1", 1, 1), b"x")
    assert [m.connectionId for m in sent_by(destination)] == [0]


def test_the_service_can_name_services_and_end_everything() -> None:
    source = Session(Mode.SOURCE)
    offer = Message(type=Message.SERVICE_IDS, availableServiceIds=["SSH1", "HTTP1"])
    assert received(source, offer) == [ServicesOffered(("SSH1", "HTTP1"))]
    one, two = source.open("SSH1"), source.open("HTTP1")
    assert received(source, Message(type=Message.SESSION_RESET)) == [ConnectionClosed(one), ConnectionClosed(two)]


@pytest.mark.parametrize(
    ("mode", "message", "complaint"),
    [
        (Mode.SOURCE, start(), "only a source may send"),
        (Mode.SOURCE, about(Message.CONNECTION_START), "only a source may send"),
        (Mode.DESTINATION, start(stream=0), "stream ID 0"),
        (Mode.DESTINATION, about(Message.DATA, stream=0), "stream ID 0"),
        (Mode.DESTINATION, Message(type=Message.UNKNOWN), "unknown type 0"),
        (Mode.DESTINATION, Message(type=99), "unknown type 99"),
    ],
)
def test_broken_rules_are_protocol_errors(mode: Mode, message: Message, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        received(Session(mode), message)


@pytest.mark.parametrize("mode", list(Mode))
def test_a_message_without_service_id_breaks_a_tunnel_with_several_services(mode: Mode) -> None:
    session = Session(mode)
    offer = Message(type=Message.SERVICE_IDS, availableServiceIds=["SSH1", "HTTP1"])
    with pytest.raises(ProtocolError, match="without a service ID, as V1 has them, though this tunnel has several"):
        received(session, offer, Message(type=Message.DATA, streamId=1))


def test_streams_of_ever_more_services_do_not_make_a_session_grow_for_ever() -> None:
    destination = Session(Mode.DESTINATION)
    received(destination, *(start(service=f"S{number}") for number in range(MAX_SERVICES)))
    assert received(destination, start(service="S1", stream=2))
    with pytest.raises(ProtocolError, match="more than 1000 services"):
        received(destination, start(service="one-more"))


OFFER_SSH = Message(type=Message.SERVICE_IDS, availableServiceIds=["SSH1"])


def test_a_destination_answers_a_v1_source_without_service_id() -> None:
    destination = Session(Mode.DESTINATION)
    connection = Connection("SSH1", 1, 1)
    assert received(destination, OFFER_SSH, Message(type=Message.STREAM_START, streamId=1))[1:] == [
        ConnectionRequested(connection)
    ]
    destination.send(connection, b"x")
    destination.close(connection)
    assert sent_by(destination) == [
        Message(type=Message.DATA, streamId=1, payload=b"x"),
        Message(type=Message.STREAM_RESET, streamId=1),
    ]


def test_a_destination_answers_a_v2_source_without_connection_id() -> None:
    destination = Session(Mode.DESTINATION)
    received(destination, Message(type=Message.STREAM_START, streamId=1, serviceId="SSH1"))
    destination.close(Connection("SSH1", 1, 1))
    assert sent_by(destination) == [Message(type=Message.STREAM_RESET, streamId=1, serviceId="SSH1")]


def test_an_old_destination_answers_a_newer_source_in_its_own_version() -> None:
    destination = Session(Mode.DESTINATION, Version.V2)
    received(destination, start())
    destination.send(Connection("SSH1", 1, 1), b"x")
    assert sent_by(destination) == [Message(type=Message.DATA, streamId=1, serviceId="SSH1", payload=b"x")]


@pytest.mark.parametrize(("version", "service_id"), [(Version.V1, ""), (Version.V2, "SSH1")])
def test_an_old_source_has_one_connection_and_ends_it_with_its_stream(version: Version, service_id: str) -> None:
    source = Session(Mode.SOURCE, version)
    received(source, OFFER_SSH)
    connection = source.open("SSH1")
    assert not source.is_idle("SSH1")
    with pytest.raises(RuntimeError, match="has one connection per service"):
        source.open("SSH1")
    source.close(connection)
    assert source.is_idle("SSH1")
    assert sent_by(source) == [
        Message(type=Message.STREAM_START, streamId=1, serviceId=service_id),
        Message(type=Message.STREAM_RESET, streamId=1, serviceId=service_id),
    ]


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (Message(type=Message.DATA, streamId=1, payload=b"x"), Version.V1),
        (Message(type=Message.STREAM_RESET, streamId=1), Version.V1),
        (Message(type=Message.DATA, streamId=1, serviceId="SSH1", payload=b"x"), Version.V2),
        (Message(type=Message.DATA, streamId=1, serviceId="SSH1", connectionId=1, payload=b"x"), Version.V3),
    ],
)
def test_the_first_answer_shows_the_version_of_the_far_end(answer: Message, version: Version) -> None:
    source = Session(Mode.SOURCE)
    received(source, OFFER_SSH)
    source.open("SSH1")
    assert received(source, answer)[0] == PeerVersionFound(version)


@pytest.mark.parametrize("answer", [about(Message.STREAM_RESET), about(Message.CONNECTION_RESET)])
def test_a_reset_that_may_be_the_services_own_shows_nothing(answer: Message) -> None:
    source = Session(Mode.SOURCE)
    connection = source.open("SSH1")
    assert received(source, answer) == [ConnectionClosed(connection)]


def test_repeated_data_is_data_until_its_connection_ends() -> None:
    source = Session(Mode.SOURCE)
    connection, other = source.open("SSH1"), source.open("HTTP1")

    def data(service_id: str, payload: bytes) -> bytes:
        # Behind all else, as proxies write it.
        return frame(Message(type=Message.DATA, streamId=1, serviceId=service_id, connectionId=1), payload)

    def events(*pieces: bytes) -> list[object]:
        return [event for piece in pieces for event in source.receive(piece)]

    payloads = [bytes([number]) * 5000 for number in range(4)]
    messages = [data("SSH1", payload) for payload in payloads]
    assert events(*messages)[1:] == [DataReceived(connection, payload) for payload in payloads]
    # As long as those, and two of those in one.
    assert events(data("HTTP1", bytes(4999))) == [DataReceived(other, bytes(4999))]
    assert events(messages[0] + messages[1]) == [DataReceived(connection, payload) for payload in payloads[:2]]
    # In the middle of another message, the same bytes are a part of that.
    outer = data("SSH1", messages[2] + b"rest")
    start = outer.index(messages[2])
    after = start + len(messages[2])
    pieces = [outer[:start], outer[start:after], outer[after:]]
    assert events(*pieces) == [DataReceived(connection, messages[2] + b"rest")]
    source.close(connection)
    assert events(messages[3]) == []


def test_a_v2_far_end_is_spoken_to_without_connection_id_from_then_on() -> None:
    source = Session(Mode.SOURCE)
    connection = source.open("SSH1")
    source.data_to_send()
    received(source, Message(type=Message.DATA, streamId=1, serviceId="SSH1", payload=b"x"))
    source.send(connection, b"y")
    source.close(connection)
    assert [(m.type, m.connectionId) for m in sent_by(source)] == [(Message.DATA, 0), (Message.STREAM_RESET, 0)]


def test_an_unknown_type_that_is_ignorable_is_skipped() -> None:
    assert received(Session(Mode.DESTINATION), Message(type=99, ignorable=True)) == []


def test_events_before_the_breach_are_still_told() -> None:
    events = Session(Mode.DESTINATION).receive(frame(start()) + frame(Message(type=99)))
    assert next(events) == ConnectionRequested(Connection("SSH1", 1, 1))
    with pytest.raises(ProtocolError):
        next(events)


@given(st.lists(st.integers(0, 4000), max_size=20), st.binary(max_size=3000))
def test_any_split_gives_the_same_events(cuts: list[int], payload: bytes) -> None:
    wire = frame(start()) + frame(about(Message.DATA, payload=payload)) + frame(about(Message.STREAM_RESET))
    whole = list(Session(Mode.DESTINATION).receive(wire))
    pieces = Session(Mode.DESTINATION)
    points = sorted({cut % (len(wire) + 1) for cut in cuts})
    parts = [wire[a:b] for a, b in zip([0, *points], [*points, len(wire)])]
    assert [event for part in parts for event in pieces.receive(part)] == whole


@given(st.sampled_from(list(Mode)), st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_gives_events_or_a_protocol_error(mode: Mode, pieces: list[bytes]) -> None:
    session = Session(mode)
    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            for event in session.receive(piece):
                assert isinstance(event, EVENTS)


class JoinedEnds(RuleBasedStateMachine):
    """A source and a destination joined by channels that delay what they carry, but keep it whole and in order.

    Whatever the interleaving, what one end received of a connection is a prefix of what the other end sent on it, and
    all of it where the sender alone closed.
    """

    version = Version.V3

    def __init__(self) -> None:
        super().__init__()
        self.source = Session(Mode.SOURCE, self.version)
        self.destination = Session(Mode.DESTINATION, self.version)
        self.services = ["SSH1"] if self.version is Version.V1 else ["SSH1", "HTTP1"]
        self.channels: dict[Mode, bytes] = {Mode.SOURCE: b"", Mode.DESTINATION: b""}
        self.sent: dict[tuple[Mode, Connection], bytes] = defaultdict(bytes)
        self.got: dict[tuple[Mode, Connection], bytes] = defaultdict(bytes)
        self.known: dict[Mode, list[Connection]] = {Mode.SOURCE: [], Mode.DESTINATION: []}
        self.closed_by: dict[Connection, set[Mode]] = defaultdict(set)

    @initialize()
    def begin(self) -> None:
        offer = Message(type=Message.SERVICE_IDS, availableServiceIds=self.services)
        for session in self._ends():
            received(session, offer)

    def _ends(self) -> list[Session]:
        return [self.source, self.destination]

    def _flush(self) -> None:
        for session in self._ends():
            self.channels[session.mode] += b"".join(session.data_to_send())

    @rule(number=st.integers(0, 1))
    def open(self, number: int) -> None:
        service = self.services[number % len(self.services)]
        if self.version is not Version.V3 and not self.source.is_idle(service):
            return
        self.known[Mode.SOURCE].append(self.source.open(service))
        self._flush()

    @precondition(lambda self: any(self.known.values()))
    @rule(data=st.data(), payload=st.binary(min_size=1, max_size=50))
    def send(self, data: st.DataObject, payload: bytes) -> None:
        session = data.draw(st.sampled_from([s for s in self._ends() if self.known[s.mode]]))
        connection = data.draw(st.sampled_from(self.known[session.mode]))
        if session.is_live(connection):
            self.sent[session.mode, connection] += payload
        session.send(connection, payload)
        self._flush()

    @precondition(lambda self: any(self.known.values()))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from([s for s in self._ends() if self.known[s.mode]]))
        connection = data.draw(st.sampled_from(self.known[session.mode]))
        if session.is_live(connection):
            self.closed_by[connection].add(session.mode)
        session.close(connection)
        self._flush()

    @rule(towards=st.sampled_from(list(Mode)), size=st.integers(1, 200))
    def deliver(self, towards: Mode, size: int) -> None:
        session, other = (self.source, Mode.DESTINATION) if towards is Mode.SOURCE else (self.destination, Mode.SOURCE)
        piece, self.channels[other] = self.channels[other][:size], self.channels[other][size:]
        for event in session.receive(piece):
            if isinstance(event, DataReceived):
                self.got[towards, event.connection] += event.payload
            elif isinstance(event, ConnectionRequested):
                self.known[towards].append(event.connection)
        self._flush()

    @invariant()
    def what_arrived_is_what_was_sent(self) -> None:
        for (mode, connection), data in self.got.items():
            sender = Mode.DESTINATION if mode is Mode.SOURCE else Mode.SOURCE
            assert self.sent[sender, connection].startswith(data)

    def teardown(self) -> None:
        while any(self.channels.values()):
            self.deliver(Mode.DESTINATION, 10_000)
            self.deliver(Mode.SOURCE, 10_000)
        for connection, closers in self.closed_by.items():
            closer = min(closers, key=lambda mode: mode.value)
            receiver = Mode.DESTINATION if closer is Mode.SOURCE else Mode.SOURCE
            if len(closers) == 1 and connection in self.known[receiver]:
                assert self.got[receiver, connection] == self.sent[closer, connection]
            assert not self.source.is_live(connection)
            assert not self.destination.is_live(connection)


class JoinedEndsOfV2(JoinedEnds):
    version = Version.V2


class JoinedEndsOfV1(JoinedEnds):
    version = Version.V1


for _model in (JoinedEnds, JoinedEndsOfV2, JoinedEndsOfV1):
    _model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

TestJoinedEnds = JoinedEnds.TestCase
TestJoinedEndsOfV2 = JoinedEndsOfV2.TestCase
TestJoinedEndsOfV1 = JoinedEndsOfV1.TestCase
