# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands talk to, in threads of this process, while the test runs a command line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tunnelproxy.net import receive_buffer
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.service.api.tunnels import TunnelOperations
from tunnelproxy.service.data_plane.server import TUNNEL_CLOSED, DataPlane
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.state.store import Store


class Manager:
    """A service manager that a command tells its state, as systemd is told."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.told: list[str] = []

    def when_ready(self, action: Callable[[], object]) -> threading.Thread:
        """Call something, in a thread, when the command says that it is ready."""

        def wait() -> None:
            while "READY=1" not in self.told:
                self.told += self._sock.recv(4096).decode().splitlines()
            action()

        waiting = threading.Thread(target=wait)
        waiting.start()
        return waiting

    def stop_when_ready(self) -> threading.Thread:
        """End the command with SIGTERM when it says that it is ready."""
        return self.when_ready(lambda: os.kill(os.getpid(), signal.SIGTERM))


@pytest.fixture(autouse=True)
def _logging_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands configure the root logger, for the whole process."""
    # Threads may log after the test's stderr, which a command logs to, is closed.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "manager"))
        sock.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "manager"))
        yield Manager(sock)


class TunnelingService:
    """A data plane in an event loop of its own, and the operations of the control API."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint("127.0.0.1", self._listener.getsockname()[1])
        self._run(self._start(folder, certificates))

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        async def call() -> dict[str, Any]:
            return self._operations.call(operation, params)

        return self._run(call())

    def close(self) -> None:
        self._run(self._data_plane.stop())
        self._listener.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _start(self, folder: Path, certificates: Certificates) -> None:
        store = Store(folder / "service.db")
        self._data_plane = DataPlane(store, clock=time.time)
        self._operations = TunnelOperations(
            store,
            disconnect=lambda tunnel_id: self._data_plane.close_tunnel(tunnel_id, TUNNEL_CLOSED),
            revoke=self._data_plane.revoke,
            clock=time.time,
            tunnel_opened=lambda: None,
            deliver=lambda tunnel, token: None,
        )
        await self._data_plane.start(self._listener, server_context(certificates))


@pytest.fixture
def receive_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each thread: elsewhere, the service and the command are two processes."""
    own = threading.local()

    def whole() -> memoryview:
        if not hasattr(own, "view"):
            own.view = memoryview(bytearray(256 * 1024))
        view: memoryview = own.view
        return view

    monkeypatch.setattr(receive_buffer, "whole", whole)
    monkeypatch.setattr(receive_buffer, "received", lambda size: whole()[:size])


@pytest.fixture
def service(tmp_path: Path, certificates: Certificates, receive_buffers: None) -> Iterator[TunnelingService]:
    with ExitStack() as stack:
        made = TunnelingService(tmp_path, certificates)
        stack.callback(made.close)
        yield made
