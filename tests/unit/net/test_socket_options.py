# SPDX-License-Identifier: GPL-3.0-or-later
"""What the link wants of real sockets, and the words for what went wrong."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

import pytest

from tunnelproxy.net.socket_options import (
    SEND_BUFFER,
    UnansweredData,
    keep_alive,
    limit_unsent,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this system has no such option")
def test_a_peer_that_vanished_is_found_after_a_minute() -> None:
    with socket.socket() as sock:
        keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, pause, probes = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + pause * probes == 60


def test_a_peer_that_does_not_read_is_not_taken_for_one_that_vanished() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        peer, _ = server.accept()
        with peer:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                while sock.send(bytes(65536)):
                    pass
            assert UnansweredData(sock).seconds() == 0


def acknowledged(seconds: float, *, retransmissions: int = 0, probes: int = 0) -> bytes:
    """The beginning of struct tcp_info of a socket that received its last acknowledgement some time ago."""
    return bytes((1, 0, retransmissions, probes)) + bytes(52) + int(seconds * 1000).to_bytes(4, sys.byteorder)


@pytest.mark.parametrize(
    ("retransmissions", "probes", "seconds"),
    [(5, 0, 61.0), (0, 5, 61.0), (4, 0, 0.0), (0, 4, 0.0)],
    ids=["lost on the way", "not even sent, without a route", "sent again", "probed"],
)
def test_a_peer_is_lost_that_has_answered_neither_retransmissions_nor_probes(
    retransmissions: int, probes: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    info = acknowledged(61, retransmissions=retransmissions, probes=probes)
    monkeypatch.setattr(socket.socket, "getsockopt", lambda sock, *which: info)
    with socket.socket() as sock:
        unanswered = UnansweredData(sock, clock)
        clock.now = 100.0
        assert unanswered.seconds() == seconds


def test_a_connection_that_was_idle_for_long_has_not_been_unanswered_for_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    info = acknowledged(600)
    monkeypatch.setattr(socket.socket, "getsockopt", lambda sock, *which: info)
    with socket.socket() as sock:
        unanswered = UnansweredData(sock, clock)
        for clock.now in (580.0, 590.0, 600.0):
            assert unanswered.seconds() == 0
        info = acknowledged(607, retransmissions=5)
        clock.now = 607.0
        assert unanswered.seconds() == 7
        info = acknowledged(0)
        clock.now = 610.0
        assert unanswered.seconds() == 0
        info = acknowledged(61, retransmissions=7)
        clock.now = 671.0
        assert unanswered.seconds() == 61


def test_what_is_no_tcp_socket_is_left_alone() -> None:
    keep_alive(None)
    limit_unsent(None, SEND_BUFFER)
    assert UnansweredData(None).seconds() == 0
    with socket.socket(socket.AF_UNIX) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        limit_unsent(sock, SEND_BUFFER)
        assert UnansweredData(sock).seconds() == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before
