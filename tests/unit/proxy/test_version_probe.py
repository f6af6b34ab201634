# SPDX-License-Identifier: GPL-3.0-or-later
"""How a source finds out what its destination speaks: real multiplexers and sockets, and destinations in memory."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

import pytest

from peers.event_loop import Clock, in_event_loop, until
from peers.links import ValveLink, message_about
from tunnelproxy.protocol.framing import Message, frame
from tunnelproxy.protocol.session import Connection, Mode, Version
from tunnelproxy.proxy.link import Link
from tunnelproxy.proxy.local_socket import LocalSocket
from tunnelproxy.proxy.multiplexer import Callbacks, Multiplexer
from tunnelproxy.proxy.version_probe import ASK_SECONDS, EXPECTED_V1, SILENCE_SECONDS, VersionProbe

BANNER = b"SSH-2.0-server\r\n"
HELLO = b"SSH-2.0-client\r\n"
MARGIN = 0.1
RECHECK_SECONDS = 10.0


@pytest.fixture(autouse=True)
def short_recheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline of a test is a minute, and moves with its clock."""
    monkeypatch.setattr("tunnelproxy.proxy.version_probe.RECHECK_SECONDS", RECHECK_SECONDS)


class Rig:
    """A source, reduced to what the probe needs of one: it makes the next link when asked to reconnect."""

    def __init__(self, *services: str, **known: Any) -> None:
        self.services = services or ("SSH",)
        self.probe = VersionProbe(self.services, self.reconnect, lambda: None, **known)
        self.reconnects: list[str] = []
        self.waiting: list[LocalSocket] = []
        self.peers: list[socket.socket] = []
        self.link_up()

    def link_up(self) -> None:
        self.link = ValveLink()
        self.version, probing = self.probe.next_link()
        callbacks = Callbacks(
            services_offered=lambda _: None,
            connection_ended=self.probe.connection_ended,
            peer_version_found=self.probe.version_found,
        )
        self.multiplexer = Multiplexer(Mode.SOURCE, callbacks, version=self.version, probing=probing)
        self.probe.use(self.multiplexer)
        self.multiplexer.link_up(cast(Link, self.link))
        offered = Message(type=Message.SERVICE_IDS, availableServiceIds=self.services)
        self.multiplexer.data_received(frame(offered))

    def reconnect(self, why: str) -> None:
        """As a source does, but for the connections that wait for the next link: see :meth:`reopen`."""
        self.reconnects.append(why)
        self.waiting += [local for _, local in self.multiplexer.carry_over()]
        self.multiplexer.link_down()
        self.link_up()

    def reopen(self) -> Connection:
        """Open the one connection that waited for this link."""
        (local,) = self.waiting
        self.waiting.clear()
        return self.probe.open("SSH", local)

    async def connect(
        self, service_id: str = "SSH", *, awaits_answer: bool = True
    ) -> tuple[Connection, LocalSocket, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        local = LocalSocket(awaits_answer=awaits_answer)
        connection = self.probe.open(service_id, local)
        self.peers.append(theirs)  # it would be closed otherwise where a test has no use for it
        await asyncio.get_running_loop().connect_accepted_socket(lambda: local, ours)
        return connection, local, theirs

    async def connect_and_say_hello(self) -> tuple[Connection, LocalSocket, socket.socket]:
        connection, local, peer = await self.connect()
        peer.send(HELLO)
        await until(lambda: local.pending or self.link.data())
        return connection, local, peer

    def receive(self, kind: Message.Type, connection: Connection, payload: bytes, version: Version) -> None:
        self.multiplexer.data_received(message_about(kind, connection, payload, version))

    def answer(self, connection: Connection, version: Version) -> None:
        """The destination's server sends its banner."""
        self.receive(Message.DATA, connection, BANNER, version)


async def skip(clock: Clock, seconds: float) -> None:
    """Let timers of these seconds run, and what they schedule."""
    clock.skip(seconds)
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("version", [Version.V2, Version.V3])
def test_a_client_is_held_until_the_destination_has_answered(version: Version) -> None:
    @in_event_loop
    async def check() -> None:
        rig = Rig()
        connection, _, peer = await rig.connect_and_say_hello()
        assert rig.link.data() == b""
        rig.answer(connection, version)
        assert rig.link.data() == HELLO
        assert (await asyncio.get_running_loop().sock_recv(peer, 100)) == BANNER
        assert (rig.probe.spoken, rig.probe.speaks_newer, rig.probe.answers_v1_only) == (version, True, False)

    check()


@in_event_loop
async def test_a_held_client_that_leaves_takes_its_bytes_along() -> None:
    rig = Rig()
    _, local, peer = await rig.connect_and_say_hello()
    peer.close()
    await until(lambda: not rig.multiplexer.connections)
    assert local.ended
    assert rig.link.data() == b""
    assert rig.link.messages[-1].type == Message.STREAM_RESET


@in_event_loop
async def test_a_held_client_may_send_more_while_it_waits() -> None:
    rig = Rig()
    connection, local, peer = await rig.connect_and_say_hello()
    peer.send(b"and more")
    await until(lambda: bytes(local.pending) == HELLO + b"and more")
    rig.answer(connection, Version.V3)
    assert rig.link.data() == HELLO + b"and more"


@pytest.mark.parametrize(
    ("services", "service_id", "known"),
    [
        (("HTTP1",), "HTTP1", {}),
        (("SSH", "HTTP1"), "SSH", {}),
        (("SSH",), "SSH", {"speaks_newer": True}),
        (("SSH",), "SSH", {"told": Version.V3}),
    ],
    ids=["another service", "several services", "known to be newer", "told"],
)
def test_nothing_is_held_where_the_destination_cannot_be_one_that_answers_v1_only(
    services: tuple[str, ...], service_id: str, known: dict[str, Any]
) -> None:
    @in_event_loop
    async def check() -> None:
        rig = Rig(*services, **known)
        _, _, peer = await rig.connect(service_id)
        peer.send(HELLO)
        await until(lambda: rig.link.data() == HELLO)

    check()


@in_event_loop
async def test_a_silent_destination_is_asked_and_then_tried_in_v1_and_gets_the_hello_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, clock = Rig(), Clock(monkeypatch)
    _, _, peer = await rig.connect_and_say_hello()
    await skip(clock, ASK_SECONDS + MARGIN)
    assert [message.type for message in rig.link.messages if message.ignorable] == [
        Message.CONNECTION_START,
        Message.CONNECTION_RESET,
    ]
    assert rig.reconnects == []
    await skip(clock, SILENCE_SECONDS - ASK_SECONDS)
    assert rig.reconnects == ["trying V1"]
    connection = rig.reopen()
    assert (rig.version, rig.link.data()) == (Version.V1, b"")
    assert rig.probe.is_undecided("SSH")
    rig.answer(connection, Version.V1)
    assert rig.link.data() == HELLO
    assert rig.probe.answers_v1_only
    assert rig.probe.refusal is None
    # The next client of this device is not held: it is known by now.
    peer.close()
    await until(lambda: not rig.multiplexer.connections)
    _, _, another = await rig.connect()
    another.send(HELLO)
    await until(lambda: rig.link.data() == 2 * HELLO)


@in_event_loop
async def test_a_client_that_leaves_between_two_links_takes_its_bytes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, clock = Rig(), Clock(monkeypatch)
    _, local, peer = await rig.connect_and_say_hello()
    await skip(clock, ASK_SECONDS + MARGIN)
    await skip(clock, SILENCE_SECONDS)
    peer.close()
    await until(lambda: local.ended)
    assert bytes(local.pending) == b""


@in_event_loop
async def test_a_destination_that_answers_the_question_is_slow_and_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, clock = Rig(), Clock(monkeypatch)
    connection, *_ = await rig.connect_and_say_hello()
    await skip(clock, ASK_SECONDS + MARGIN)
    rig.receive(Message.CONNECTION_RESET, connection._replace(connection_id=2), b"", Version.V3)
    assert rig.link.data() == HELLO
    await skip(clock, SILENCE_SECONDS)
    assert rig.reconnects == []
    assert rig.probe.speaks_newer


@in_event_loop
async def test_a_destination_that_was_expected_to_speak_v1_is_given_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, clock = Rig(expects_v1=True), Clock(monkeypatch)
    await rig.connect_and_say_hello()
    await skip(clock, EXPECTED_V1 * ASK_SECONDS + MARGIN)
    await skip(clock, EXPECTED_V1 * SILENCE_SECONDS)
    assert rig.reconnects == ["trying V1"]


@in_event_loop
async def test_a_destination_that_does_not_answer_v1_either_is_spoken_to_in_v3_again() -> None:
    rig = Rig(answers_v1_only=True)
    assert rig.version is Version.V1
    _, _, peer = await rig.connect_and_say_hello()
    peer.close()
    await until(lambda: rig.reconnects == ["no answer to V1 either"])
    assert rig.version is Version.V3
    assert not rig.probe.answers_v1_only


@in_event_loop
async def test_a_destination_that_answers_v1_and_shows_that_it_is_newer_is_spoken_to_in_v3_when_idle() -> None:
    """As the reference of 2.x does."""
    rig = Rig(answers_v1_only=True)
    connection, _, peer = await rig.connect_and_say_hello()
    rig.answer(connection, Version.V2)
    assert rig.link.data() == HELLO
    assert rig.reconnects == []
    peer.close()
    await until(lambda: rig.reconnects == ["the destination speaks a newer version"])
    assert rig.version is Version.V3


async def rig_of_v1() -> tuple[Rig, Connection, socket.socket]:
    """A destination that has answered V1 only, and a client that is connected to it."""
    rig = Rig(answers_v1_only=True)
    connection, _, peer = await rig.connect_and_say_hello()
    rig.answer(connection, Version.V1)
    assert (rig.probe.answers_v1_only, rig.version) == (True, Version.V1)
    return rig, connection, peer


async def answer_of_a_newer_one(rig: Rig, clock: Clock) -> None:
    """A client connects to a newer destination that is slow: it is asked as early as one that is expected to be old."""
    connection, *_ = await rig.connect_and_say_hello()
    await skip(clock, EXPECTED_V1 * ASK_SECONDS + MARGIN)
    assert any(message.ignorable for message in rig.link.messages)
    rig.answer(connection, Version.V3)
    assert rig.link.data() == HELLO
    assert (rig.probe.spoken, rig.probe.speaks_newer, rig.probe.answers_v1_only) == (Version.V3, True, False)


@in_event_loop
async def test_a_v1_destination_that_ends_a_connection_may_have_been_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, connection, _ = await rig_of_v1()
    clock = Clock(monkeypatch)
    rig.receive(Message.STREAM_RESET, connection, b"", Version.V1)
    await until(lambda: rig.reconnects == ["another destination may have taken its place"])
    assert rig.version is Version.V3
    assert rig.probe.answers_v1_only
    await answer_of_a_newer_one(rig, clock)


@in_event_loop
async def test_a_v1_destination_may_have_been_replaced_before_the_next_link(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, _, _ = await rig_of_v1()
    clock = Clock(monkeypatch)
    rig.multiplexer.link_down()
    rig.link_up()
    await skip(clock, 0)
    assert (rig.version, rig.reconnects) == (Version.V3, [])
    await answer_of_a_newer_one(rig, clock)


@in_event_loop
async def test_a_v1_destination_may_have_been_replaced_while_nothing_was_carried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, _, peer = await rig_of_v1()
    clock = Clock(monkeypatch)
    peer.close()
    await until(lambda: not rig.multiplexer.connections)
    await skip(clock, RECHECK_SECONDS / 2)
    connection, _, peer = await rig.connect()
    rig.answer(connection, Version.V1)
    await skip(clock, RECHECK_SECONDS)
    assert (rig.reconnects, rig.version) == ([], Version.V1)
    peer.close()
    await until(lambda: not rig.multiplexer.connections)
    await skip(clock, RECHECK_SECONDS + MARGIN)
    assert rig.reconnects == ["another destination may have taken its place"]
    await answer_of_a_newer_one(rig, clock)


@in_event_loop
async def test_a_source_that_was_told_to_speak_v1_does_so_on_each_link(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, clock = Rig(told=Version.V1), Clock(monkeypatch)
    for _ in range(2):
        connection, *_ = await rig.connect_and_say_hello()
        rig.answer(connection, Version.V1)
        rig.receive(Message.STREAM_RESET, connection, b"", Version.V1)
        await skip(clock, RECHECK_SECONDS + MARGIN)
        assert (rig.version, rig.reconnects) == (Version.V1, [])
        rig.multiplexer.link_down()
        rig.link_up()


@pytest.mark.parametrize(
    ("services", "told", "words"),
    [
        (("SSH",), Version.V3, "this source was told that it speaks V3: pass -y V1, or omit -y"),
        (("SSH", "HTTP1"), None, "but this tunnel has SSH, HTTP1: open a tunnel with one service for this device"),
    ],
)
def test_a_v1_destination_that_does_not_fit_ends_the_connection_and_says_why(
    services: tuple[str, ...], told: Version | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    @in_event_loop
    async def check() -> None:
        rig = Rig(*services, told=told)
        connection, local, _ = await rig.connect()
        rig.answer(connection, Version.V1)
        assert rig.probe.refusal is not None
        assert words in rig.probe.refusal
        assert words in caplog.text
        assert rig.multiplexer.connections == {}
        await until(lambda: local.ended)

    check()


@in_event_loop
async def test_a_destination_that_fits_after_all_is_refused_no_more() -> None:
    rig = Rig(told=Version.V3)
    rig.probe.version_found(Version.V1)
    assert rig.probe.refusal is not None
    rig.probe.version_found(Version.V3)
    assert rig.probe.refusal is None


@in_event_loop
async def test_where_bytes_were_sent_already_the_operator_is_told_about_the_option(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig, clock = Rig("HTTP1"), Clock(monkeypatch)
    _, _, peer = await rig.connect("HTTP1", awaits_answer=False)
    peer.send(b"question")
    await until(lambda: rig.link.data() == b"question")
    await skip(clock, ASK_SECONDS + MARGIN)
    with caplog.at_level(logging.WARNING):
        await skip(clock, SILENCE_SECONDS)
    assert rig.reconnects == []
    assert "HTTP1: no answer from the destination for 15 s: its server is slow, or it speaks V1 only" in caplog.text
    assert "pass -y V1" in caplog.text


@in_event_loop
async def test_with_several_services_silence_means_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig, clock = Rig("SSH", "HTTP1"), Clock(monkeypatch)
    await rig.connect()
    await skip(clock, ASK_SECONDS + MARGIN)
    await skip(clock, SILENCE_SECONDS)
    assert (rig.reconnects, caplog.text) == ([], "")


@in_event_loop
async def test_nobody_waits_for_an_answer_to_a_connection_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, clock = Rig(), Clock(monkeypatch)
    _, _, peer = await rig.connect()
    peer.close()
    await until(lambda: not rig.multiplexer.connections)
    await skip(clock, SILENCE_SECONDS + MARGIN)
    assert not any(message.ignorable for message in rig.link.messages)
    assert rig.reconnects == []


@in_event_loop
async def test_the_next_connection_has_its_own_time_to_be_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, clock = Rig(), Clock(monkeypatch)
    _, _, peer = await rig.connect()
    await skip(clock, ASK_SECONDS - 1)
    peer.close()
    await until(lambda: not rig.multiplexer.connections)
    await rig.connect()
    await skip(clock, 2)
    assert not any(message.ignorable for message in rig.link.messages)
    await skip(clock, ASK_SECONDS - 1)
    assert any(message.ignorable for message in rig.link.messages)


@in_event_loop
async def test_the_probe_needs_a_link() -> None:
    probe = VersionProbe(["SSH"], lambda _: None, lambda: None)
    with pytest.raises(RuntimeError, match="no link yet"):
        probe.is_undecided("SSH")
