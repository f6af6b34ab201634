# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peers.reference import ReferenceRules
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


def test_a_stream_outlives_its_last_connection() -> None:
    source = Session(Mode.SOURCE)
    source.close(source.open("SSH1"))
    received(source, about(Message.CONNECTION_RESET, connection=source.open("SSH1").connection_id))
    assert source.open("SSH1") == Connection("SSH1", 1, 3)
    assert [(m.type, m.connectionId) for m in sent_by(source)] == [
        (Message.STREAM_START, 1),
        (Message.CONNECTION_RESET, 1),
        (Message.CONNECTION_START, 2),
        (Message.CONNECTION_START, 3),
    ]


@pytest.mark.parametrize("reset", [about(Message.STREAM_RESET), Message(type=Message.SESSION_RESET)])
def test_a_new_stream_starts_after_a_reset(reset: Message) -> None:
    """The old one is reset for a destination that took a start under way for the start of it."""
    source = Session(Mode.SOURCE)
    source.open("SSH1")
    received(source, reset)
    source.data_to_send()
    assert source.open("SSH1") == Connection("SSH1", 2, 1)
    assert [(m.type, m.streamId) for m in sent_by(source)] == [(Message.STREAM_RESET, 1), (Message.STREAM_START, 2)]
    assert source.open("SSH1") == Connection("SSH1", 2, 2)


def test_stream_ids_begin_again_at_one_rather_than_overflow() -> None:
    source = Session(Mode.SOURCE)
    source.open("SSH1")
    source._streams["SSH1"].stream_id = 2**31 - 1
    assert received(source, about(Message.STREAM_RESET, stream=2**31 - 1))
    assert source.open("SSH1").stream_id == 1


def test_what_still_comes_from_before_a_reconnect_is_not_taken_for_a_new_streams() -> None:
    before = Session(Mode.SOURCE)
    for service in ("SSH1", "SSH1", "HTTP1"):
        before.open(service)
        received(before, Message(type=Message.SESSION_RESET))
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
    assert sent_by(source) == [about(Message.DATA, connection=2)]


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


@pytest.mark.parametrize("before", [[], [start(stream=3)], [start(stream=4), about(Message.STREAM_RESET, stream=4)]])
def test_a_connection_start_of_an_unknown_stream_is_the_start_of_one(before: list[Message]) -> None:
    """Its source had it with the destination that was here before."""
    destination = Session(Mode.DESTINATION)
    received(destination, *before)
    one, two = Connection("SSH1", 4, 7), Connection("SSH1", 4, 9)
    events = received(
        destination,
        about(Message.CONNECTION_START, stream=4, connection=7),
        about(Message.CONNECTION_START, stream=4, connection=9),
        about(Message.DATA, stream=4, connection=7, payload=b"x"),
    )
    assert events[-3:] == [ConnectionRequested(one), ConnectionRequested(two), DataReceived(one, b"x")]
    destination.close(one)
    assert sent_by(destination) == [about(Message.CONNECTION_RESET, stream=4, connection=7)]


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ({}, Message(type=Message.STREAM_RESET, streamId=4)),
        ({"serviceId": "SSH1"}, Message(type=Message.STREAM_RESET, streamId=4, serviceId="SSH1")),
        ({"serviceId": "SSH1", "connectionId": 7}, about(Message.CONNECTION_RESET, stream=4, connection=7)),
    ],
)
def test_data_for_whoever_was_here_before_is_answered_with_a_reset(version: dict[str, Any], answer: Message) -> None:
    destination = Session(Mode.DESTINATION)
    received(destination, OFFER_SSH)
    assert received(destination, Message(type=Message.DATA, streamId=4, payload=b"x", **version)) == []
    assert sent_by(destination) == [answer]


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
    assert not source.can_open("SSH1")
    with pytest.raises(RuntimeError, match="has one connection per service"):
        source.open("SSH1")
    source.close(connection)
    assert source.can_open("SSH1")
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


def probing_source(service: str = "SSH1") -> tuple[Session, Connection]:
    """A source that was not told what the destination speaks, with a first connection."""
    source = Session(Mode.SOURCE, probing=True)
    received(source, OFFER_SSH)
    connection = source.open(service)
    source.data_to_send()
    return source, connection


def test_no_message_of_v3_goes_to_a_destination_that_has_shown_nothing() -> None:
    """The reference of V1 and V2 exits when it gets one."""
    source, connection = probing_source()
    assert source.is_undecided("SSH1")
    assert not source.can_open("SSH1")
    with pytest.raises(RuntimeError, match="one connection per service"):
        source.open("SSH1")
    source.close(connection)
    assert source.open("SSH1") == Connection("SSH1", 2, 1)
    assert [(m.type, m.streamId) for m in sent_by(source)] == [(Message.STREAM_RESET, 1), (Message.STREAM_START, 2)]


def test_a_destination_that_has_answered_in_v3_can_have_more_connections_in_the_stream() -> None:
    source, connection = probing_source()
    assert received(source, about(Message.DATA, payload=b"x"))[0] == PeerVersionFound(Version.V3)
    assert source.open("SSH1") == Connection("SSH1", 1, 2)
    source.close(connection)
    source.close(Connection("SSH1", 1, 2))
    assert source.open("SSH1") == Connection("SSH1", 1, 3)
    assert {m.type for m in sent_by(source)} == {Message.CONNECTION_START, Message.CONNECTION_RESET}


def test_each_stream_shows_anew_what_the_destination_speaks() -> None:
    """Another destination may have come."""
    source, _ = probing_source()
    received(source, about(Message.DATA, payload=b"x"), about(Message.STREAM_RESET))
    connection = source.open("SSH1")
    assert source.is_undecided("SSH1")
    source.data_to_send()
    answer = Message(type=Message.DATA, streamId=2, serviceId="SSH1", payload=b"y")
    assert received(source, answer) == [PeerVersionFound(Version.V2), DataReceived(connection, b"y")]
    assert not source.is_undecided("SSH1")
    assert not source.can_open("SSH1")
    source.close(connection)
    assert sent_by(source) == [Message(type=Message.STREAM_RESET, streamId=2, serviceId="SSH1")]


def test_a_v1_destination_that_answers_goes_on_in_the_same_session() -> None:
    source, connection = probing_source()
    answers = Message(type=Message.DATA, streamId=1, payload=b"x"), Message(type=Message.STREAM_RESET, streamId=1)
    assert received(source, *answers) == [
        PeerVersionFound(Version.V1),
        DataReceived(connection, b"x"),
        ConnectionClosed(connection),
    ]
    assert source.open("SSH1") == Connection("SSH1", 2, 1)
    assert {bool(m.serviceId) for m in sent_by(source)} == {True}


@pytest.mark.parametrize("version", [Version.V1, Version.V2])
def test_the_question_for_v3_is_ignored_by_what_is_older(version: Version) -> None:
    source, _ = probing_source()
    source.ask_version("SSH1")
    question = sent_by(source)
    assert [(m.type, m.connectionId, m.ignorable) for m in question] == [
        (Message.CONNECTION_START, 2, True),
        (Message.CONNECTION_RESET, 2, True),
    ]
    destination = Session(Mode.DESTINATION, version)
    received(destination, OFFER_SSH, start())
    assert received(destination, *question) == []
    assert sent_by(destination) == []
    assert destination.is_live(Connection("SSH1", 1, 1))


def test_the_question_for_v3_is_answered_without_a_connection() -> None:
    source, connection = probing_source()
    destination = Session(Mode.DESTINATION)
    received(destination, start())
    source.ask_version("SSH1")
    source.ask_version("SSH1")
    assert received(destination, *sent_by(source)) == []
    (answer,) = sent_by(destination)
    assert received(source, answer) == [PeerVersionFound(Version.V3)]
    assert source.is_live(connection)
    assert source.open("SSH1") == Connection("SSH1", 1, 3)


def test_an_answer_that_comes_when_nothing_is_open_any_more_shows_nothing() -> None:
    source, connection = probing_source()
    source.ask_version("SSH1")
    source.close(connection)
    assert received(source, about(Message.CONNECTION_RESET, connection=2)) == []


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
        if self.version is not Version.V3 and not self.source.can_open(service):
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


class ReferenceAtTheFarEnd(RuleBasedStateMachine):
    """A source, the service, and a destination by the reference's rules, which others take the place of.

    Messages are under way in both directions; the service passes on to whoever is there. Whatever happened: no
    destination exits, nothing arrives twice or at the wrong connection, and the next connection works.
    """

    version = Version.V3
    told = False
    announced = st.booleans()
    """Whether the service tells the source, by STREAM_RESETs, that another destination has come."""

    def __init__(self) -> None:
        super().__init__()
        self.services = ["SSH1"] if self.version is Version.V1 else ["SSH1", "HTTP1"]
        self.offer = Message(type=Message.SERVICE_IDS, availableServiceIds=self.services)
        self.to_source: list[Message] = []
        self.to_destination: list[Message] = []
        self.sent: dict[Connection, bytes] = defaultdict(bytes)
        self.got: dict[tuple[int, str, int], bytes] = defaultdict(bytes)
        self.answers: dict[Connection, bytes] = defaultdict(bytes)
        self.opened: list[Connection] = []
        self.numbers = iter(range(1, 1_000_000))
        self.streams: dict[str, int] = {}
        self.destinations = 0
        self.source = self.new_source(1)
        self.new_destination()

    def new_source(self, first_stream_id: int) -> Session:
        settings = (self.version, False) if self.told else (Version.V3, True)
        source = Session(Mode.SOURCE, settings[0], probing=settings[1], first_stream_id=first_stream_id)
        received(source, self.offer)
        return source

    def new_destination(self) -> None:
        self.destinations += 1
        number = self.destinations

        def deliver(service: str, connection_id: int, data: bytes) -> None:
            self.got[number, service, connection_id] += data
            # As an echo server does.
            rules.server_said(service, connection_id, data)

        rules = ReferenceRules(self.version, lambda *_: None, deliver, lambda *_: None, self.to_source.append)
        self.destination = rules
        if self.version is not Version.V1:
            rules.receive(self.offer)

    def flush(self) -> None:
        self.to_destination += sent_by(self.source)

    def live(self) -> list[Connection]:
        return [connection for connection in self.opened if self.source.is_live(connection)]

    @rule(number=st.integers(0, 1))
    def open(self, number: int) -> None:
        service = self.services[number % len(self.services)]
        if self.source.can_open(service):
            self.opened.append(self.source.open(service))
            self.flush()
        else:
            self.source.ask_version(service)
            self.flush()

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from(self.live()))
        piece = b"%d," % next(self.numbers)
        self.sent[connection] += piece
        self.source.send(connection, piece)
        self.flush()

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.source.close(data.draw(st.sampled_from(self.live())))
        self.flush()

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def server_closes(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from(self.live()))
        service = "" if self.version is Version.V1 else connection.service_id
        self.destination.server_closed(service, connection.connection_id if self.version is Version.V3 else 0)

    @rule(many=st.integers(1, 5))
    def pass_on(self, many: int) -> None:
        for message in self.to_destination[:many]:
            self.pass_one_on(message)
        del self.to_destination[:many]

    def pass_one_on(self, message: Message) -> None:
        if message.type in (Message.STREAM_START, Message.CONNECTION_START):
            self.streams[message.serviceId] = message.streamId
        elif message.type == Message.STREAM_RESET and self.streams.get(message.serviceId) == message.streamId:
            del self.streams[message.serviceId]
        self.destination.receive(message)

    @rule(many=st.integers(1, 5))
    def take(self, many: int) -> None:
        messages = self.to_source[:many]
        del self.to_source[:many]
        for message in messages:
            for event in received(self.source, message):
                if isinstance(event, DataReceived):
                    self.answers[event.connection] += event.payload
        self.flush()

    @rule(data=st.data())
    def another_destination_comes(self, data: st.DataObject) -> None:
        if data.draw(self.announced):
            self.to_source += self.resets()
        self.new_destination()

    @rule()
    def the_source_reconnects(self) -> None:
        self.to_destination.clear()
        self.to_source.clear()
        for message in self.resets():
            self.destination.receive(message)
        self.source = self.new_source(self.source.next_stream_id)
        self.opened.clear()

    def resets(self) -> list[Message]:
        streams, self.streams = self.streams, {}
        return [
            Message(type=Message.STREAM_RESET, streamId=stream_id, serviceId=service)
            for service, stream_id in streams.items()
        ]

    @invariant()
    def what_is_answered_is_what_was_sent(self) -> None:
        for connection, data in self.answers.items():
            assert self.sent[connection].startswith(data) or self.destinations > 1
        for data in self.got.values():
            pieces = data.split(b",")[:-1]
            assert len(pieces) == len(set(pieces))

    def settle(self) -> None:
        while self.to_destination or self.to_source:
            self.pass_on(1000)
            self.take(1000)

    def teardown(self) -> None:
        """The next connection works."""
        self.settle()
        for connection in self.live():
            self.source.close(connection)
        self.flush()
        self.settle()
        for service in self.services:
            connection = self.source.open(service)
            self.source.send(connection, b"next,")
            self.flush()
            self.settle()
            assert self.answers[connection] == b"next,"


class ReferenceOfV2AtTheFarEnd(ReferenceAtTheFarEnd):
    version = Version.V2


class ReferenceOfV1AtTheFarEnd(ReferenceAtTheFarEnd):
    version = Version.V1


class ReferenceOfAToldVersion(ReferenceAtTheFarEnd):
    told = True


for _model in (
    JoinedEnds,
    JoinedEndsOfV2,
    JoinedEndsOfV1,
    ReferenceAtTheFarEnd,
    ReferenceOfV2AtTheFarEnd,
    ReferenceOfV1AtTheFarEnd,
    ReferenceOfAToldVersion,
):
    _model.TestCase.settings = settings(stateful_step_count=40, deadline=None)

TestJoinedEnds = JoinedEnds.TestCase
TestJoinedEndsOfV2 = JoinedEndsOfV2.TestCase
TestJoinedEndsOfV1 = JoinedEndsOfV1.TestCase
TestReferenceAtTheFarEnd = ReferenceAtTheFarEnd.TestCase
TestReferenceOfV2AtTheFarEnd = ReferenceOfV2AtTheFarEnd.TestCase
TestReferenceOfV1AtTheFarEnd = ReferenceOfV1AtTheFarEnd.TestCase
TestReferenceOfAToldVersion = ReferenceOfAToldVersion.TestCase
