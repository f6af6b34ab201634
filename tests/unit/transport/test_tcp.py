# SPDX-License-Identifier: GPL-3.0-or-later
"""What the link wants of real sockets, and the words for what went wrong."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tunnelproxy.transport.tcp import DEAD_SECONDS, SEND_BUFFER, reason, tune


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
def test_a_tcp_socket_has_short_queues_and_an_end() -> None:
    with socket.socket() as sock:
        tune(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, 25) == SEND_BUFFER
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == DEAD_SECONDS * 1000


def test_what_is_no_tcp_socket_is_left_alone() -> None:
    tune(None)
    with socket.socket(socket.AF_UNIX) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        tune(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "the host name is not known"),
        (OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)), "connection refused"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host"),
        (OSError("a text alone"), "a text alone"),
    ],
)
def test_the_cause_is_said(error: OSError, words: str) -> None:
    assert reason(error) == words
