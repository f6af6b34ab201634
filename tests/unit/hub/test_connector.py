# SPDX-License-Identifier: GPL-3.0-or-later
"""What the connector sees of a stream before it passes it to ssh."""

from __future__ import annotations

import socket

import pytest

from tunnelproxy.hub.connector import peek_greeting


@pytest.mark.parametrize(
    ("data", "greeting"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ""),
        (b"", ""),
        (b"Exceeded MaxStartups\r\n", "Exceeded MaxStartups"),
        (b"\r\n220 \x1b[31mftp\xff\nmore", "220  [31mftp\ufffd"),
    ],
)
def test_a_greeting_that_is_no_ssh_server_s_is_told_and_left_where_it_is(data: bytes, greeting: str) -> None:
    device, stream = socket.socketpair()
    with device, stream:
        device.sendall(data)
        assert peek_greeting(stream.fileno()) == greeting
        stream.setblocking(False)
        if data:
            assert stream.recv(1000) == data
