# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping others from a port of ``::1``."""

from __future__ import annotations

import errno
import socket

import pytest

from tunnelproxy.net.ipv6_loopback import reserve


def test_a_reserved_port_is_to_be_had_by_nobody_else_and_refuses_connections() -> None:
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        port = ours.getsockname()[1]
        reserved = reserve(port)
        assert reserved is not None
        with reserved:
            with pytest.raises(OSError, match="Address already in use"):
                reserve(port)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("::1", port), 5)
        again = reserve(port)
        assert again is not None
        again.close()


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPERM])
def test_a_process_without_ipv6_has_nothing_to_reserve(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_arguments: object) -> None:
        raise OSError(number, "no IPv6")

    monkeypatch.setattr(socket, "socket", no_socket)
    assert reserve(5555) is None


def test_a_lack_of_descriptors_is_not_taken_for_a_lack_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_socket)
    with pytest.raises(OSError, match="Too many open files"):
        reserve(5555)
