# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ports of the loopback a service may have."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tunnelproxy.errors import ConfigurationError
from tunnelproxy.hub.local_ports import check_port, is_free, is_http, is_ssh, reason_of
from tunnelproxy.hub.location import HubError


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_ssh_gets_no_port_for_other_users_could_use_it() -> None:
    with pytest.raises(HubError, match="SSH1 of pump cannot have a port") as caught:
        check_port("SSH1", 0, "pump", own_ports=())
    assert caught.value.code == "bad-input"
    check_port("SSH1", None, "pump", own_ports=())


def test_a_port_that_another_program_has_is_refused(taken: int) -> None:
    with pytest.raises(HubError, match=f"cannot have port {taken} on 127.0.0.1: another program listens") as caught:
        check_port("HTTP1", taken, "pump", own_ports=())
    assert caught.value.code == "port-in-use"
    check_port("HTTP1", taken, "pump", own_ports=[taken])
    check_port("HTTP1", 0, "pump", own_ports=())


def test_a_browser_s_port_is_free_only_if_it_is_so_on_ipv6_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        assert is_free("VNC", port)
        assert not is_free("HTTP1", port)


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (OSError(98, "Address already in use"), "another program listens there"),
        (OSError(13, "Permission denied"), "Permission denied"),
        (None, "it is not possible"),
    ],
)
def test_the_system_s_words_are_the_reason(cause: OSError | None, said: str) -> None:
    error = ConfigurationError("it is not possible")
    error.__cause__ = cause
    assert reason_of(error) == said


def test_services_are_told_by_their_ids() -> None:
    assert [is_ssh(name) for name in ("SSH1", "ssh", "HTTP1")] == [True, True, False]
    assert [is_http(name) for name in ("HTTP1", "https", "VNC")] == [True, True, False]
