# SPDX-License-Identifier: GPL-3.0-or-later
"""The ports that the service binds, and what the operator reads when one cannot be bound."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import pytest

from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.listening.bound_socket import bind, bind_remembered


def port_of(bound: socket.socket) -> int:
    port: int = bound.getsockname()[1]
    return port


def test_a_free_port_is_chosen_where_none_is_given() -> None:
    with contextlib.closing(bind("127.0.0.1", 0, "--api-port")) as bound:
        assert port_of(bound) > 0


def test_a_port_in_use_is_named_with_its_option() -> None:
    with contextlib.closing(bind("127.0.0.1", 0, "--api-port")) as taken:
        port = port_of(taken)
        with pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is in use; give --data-port another one"):
            bind("127.0.0.1", port, "--data-port")


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ServiceError, match=r"this machine has no address 192\.0\.2\.1; give --host one that it has"):
        bind("192.0.2.1", 0, "--api-port")


def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(ServiceError, match=r"cannot resolve --host no\.such\.invalid: "):
        bind("no.such.invalid", 0, "--api-port")


def test_other_errors_are_told_in_the_systems_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EACCES, "refused")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(
        ServiceError, match=r"cannot listen on port 443 of 127\.0\.0\.1 \(--api-port\): Permission denied"
    ):
        bind("127.0.0.1", 443, "--api-port")


def test_the_port_of_the_last_run_is_used_again() -> None:
    with contextlib.closing(bind("127.0.0.1", 0, "--api-port")) as last:
        port = port_of(last)
    with contextlib.closing(bind_remembered("127.0.0.1", 0, port, "--api-port")) as bound:
        assert port_of(bound) == port


def test_another_port_is_chosen_when_that_of_the_last_run_is_in_use(caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(bind("127.0.0.1", 0, "--api-port")) as taken:
        port = port_of(taken)
        with contextlib.closing(bind_remembered("127.0.0.1", 0, port, "--api-port")) as bound:
            assert port_of(bound) != port
    assert f"port {port} of the last run is in use; choosing another one for --api-port" in caplog.text


def test_a_given_port_takes_precedence_over_that_of_the_last_run() -> None:
    with contextlib.closing(bind("127.0.0.1", 0, "--api-port")) as free:
        port = port_of(free)
    with contextlib.closing(bind_remembered("127.0.0.1", port, 1, "--api-port")) as bound:
        assert port_of(bound) == port
