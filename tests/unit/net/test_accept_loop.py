# SPDX-License-Identifier: GPL-3.0-or-later
"""No error of accept(2) ends a listener."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import until
from tunnelproxy.net import accept_loop
from tunnelproxy.net.accept_loop import accept_connections

uvloop = pytest.importorskip("uvloop")

# accept(2): "Linux accept() passes already-pending network errors on the new socket as an error code from accept()".
OF_ONE_CONNECTION = (
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.EPERM,
    errno.ETIMEDOUT,
)


class Listener(socket.socket):
    """A listening Unix socket, of which accept(2) says first what a test wants."""

    def __init__(self, path: Path, errors: tuple[int, ...] = ()) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path = str(path / "socket")
        self.bind(self.path)
        self.listen(16)
        self.errors = list(errors)

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run(test: Coroutine[Any, Any, None]) -> None:
        loop = asyncio.new_event_loop() if request.param == "asyncio" else uvloop.new_event_loop()
        try:
            loop.run_until_complete(asyncio.wait_for(test, 60))
        finally:
            loop.close()

    return run


@contextmanager
def connected(listener: Listener) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        connection.connect(listener.path)
        yield connection


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("number", OF_ONE_CONNECTION, ids=errno.errorcode.get)
def test_an_error_of_one_connection_leaves_the_listener_to_the_next(
    number: int, run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def test() -> None:
        admitted: list[socket.socket] = []
        with Listener(tmp_path, (number,)) as listener, connected(listener):
            accept = asyncio.ensure_future(accept_connections(listener, lambda sock, _: admitted.append(sock)))
            await until(lambda: admitted)
            accept.cancel()
        assert not admitted[0].getblocking()
        admitted[0].close()

    run(test())


def test_no_descriptors_left_is_waited_for_and_said_once(
    run: Callable[[Coroutine[Any, Any, None]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(accept_loop, "_PAUSE_WITHOUT_RESOURCES", 0.001)

    async def test() -> None:
        admitted: list[socket.socket] = []
        with Listener(tmp_path) as listener, connected(listener):
            with no_descriptors_left():
                accept = asyncio.ensure_future(accept_connections(listener, lambda sock, _: admitted.append(sock)))
                await until(lambda: caplog.records)
            assert not admitted
            await until(lambda: admitted)
            accept.cancel()
        admitted[0].close()

    with caplog.at_level(logging.WARNING):
        run(test())
    assert [record.getMessage() for record in caplog.records] == [
        "cannot accept connections for now: Too many open files"
    ]


def test_an_error_that_stays_takes_no_processor(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_loop, "_PAUSE_AFTER_ERRORS", 30.0)

    async def test() -> None:
        with Listener(tmp_path, (errno.EINVAL,) * 100) as listener, connected(listener):
            accept = asyncio.ensure_future(accept_connections(listener, lambda *_: None))
            await until(lambda: len(listener.errors) < 100)
            await asyncio.wait({accept}, timeout=0.05)
            assert len(listener.errors) == 98
            accept.cancel()

    run(test())


def test_a_connection_that_cannot_be_served_is_closed_and_the_next_is_taken(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
) -> None:
    async def test() -> None:
        admitted: list[socket.socket] = []

        def admit(sock: socket.socket, _: Any) -> None:
            admitted.append(sock)
            if len(admitted) == 1:
                raise ValueError("not this one")

        with Listener(tmp_path) as listener, connected(listener) as first:
            accept = asyncio.ensure_future(accept_connections(listener, admit))
            await until(lambda: admitted)
            with connected(listener):
                await until(lambda: len(admitted) > 1)
            assert await asyncio.get_running_loop().sock_recv(first, 1) == b""
            accept.cancel()
        admitted[1].close()

    run(test())
