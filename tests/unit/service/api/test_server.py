# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API's HTTP server: connections, and what happens to them when it stops."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from peers.event_loop import in_event_loop, until
from tunnelproxy.service.api import server as module
from tunnelproxy.service.api.server import ApiServer
from tunnelproxy.service.events import CutOff, Event
from tunnelproxy.service.limits import Limits
from tunnelproxy.service.logs.unexpected_errors import UnexpectedErrors
from tunnelproxy.service.state.certificates import Certificates, server_context

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Running:
    def __init__(self, certificates: Certificates) -> None:
        self.events: list[Event] = []
        self.requests: list[web.Request] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.server = ApiServer(
            server_context(certificates), Limits(handshake_seconds=0.1), self.events.append, UnexpectedErrors()
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._context = ssl.create_default_context(cafile=str(certificates.authority))

    async def start(self) -> None:
        application = web.Application()
        application.router.add_get("/", self._answer)
        await self.server.start(application, self._socket)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._socket.getsockname()
        return await asyncio.open_connection(host, port, ssl=self._context, server_hostname="localhost")

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        await self.may_answer.wait()
        return web.Response(text="answer")


@asynccontextmanager
async def running(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(module, "BODY_DEADLINE", 0.3)
    monkeypatch.setattr(module, "_STOP_DEADLINE", 0.5)
    started = Running(certificates)
    await started.start()
    try:
        yield started
    finally:
        await started.server.stop()


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    return await reader.readexactly(len(b"answer"))


@in_event_loop
async def test_a_connection_without_a_signed_request_is_cut_off(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(certificates, monkeypatch) as api:
        reader, writer = await api.connect()
        writer.write(REQUEST)
        assert await read_answer(reader) == b"answer"
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        assert api.events == [CutOff("127.0.0.1", "handshake-time")]


@in_event_loop
async def test_a_settled_connection_stays(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(certificates, monkeypatch) as api:
        settled, writer = await api.connect()
        writer.write(REQUEST)
        await read_answer(settled)
        api.server.settle(api.requests[0].protocol)
        idle, _ = await api.connect()
        with suppress(ConnectionError):
            await asyncio.wait_for(idle.read(), 10)
        writer.write(REQUEST)
        assert await read_answer(settled) == b"answer"


@in_event_loop
async def test_a_request_that_has_begun_is_answered_when_the_server_stops(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(certificates, monkeypatch) as api:
        api.may_answer.clear()
        reader, writer = await api.connect()
        writer.write(REQUEST)
        await until(lambda: api.requests)
        api.server.settle(api.requests[0].protocol)
        api.server.stop_accepting()
        stopping = asyncio.ensure_future(api.server.stop())
        api.may_answer.set()
        assert await read_answer(reader) == b"answer"
        await stopping
