# SPDX-License-Identifier: GPL-3.0-or-later
"""How a connection answers malformed requests and errors. ``test_hostile_requests`` sends many more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from peers.event_loop import in_event_loop
from tunnelproxy.service.api.request_handler import RequestHandler
from tunnelproxy.service.events import CutOff, Event
from tunnelproxy.service.logs.unexpected_errors import UnexpectedErrors

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


class Server:
    def __init__(self, port: int, events: list[Event], failures: UnexpectedErrors) -> None:
        self.events = events
        self.failures = failures
        self.port = port

    async def answer(self, request: bytes) -> tuple[int, dict[str, Any]]:
        """The status and the content of the answer; the connection must be closed after it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(body)


@asynccontextmanager
async def serving(answer: Any) -> AsyncIterator[Server]:
    events: list[Event] = []
    failures = UnexpectedErrors()
    application = web.Application()
    application.router.add_route("*", "/", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None

    def make() -> RequestHandler:
        return RequestHandler(runner.server, notify=events.append, failures=failures)

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield Server(server.sockets[0].getsockname()[1], events, failures)
    finally:
        server.close()
        await runner.cleanup()


async def ok(request: web.Request) -> web.Response:
    return web.json_response({})


async def fails(request: web.Request) -> web.Response:
    raise RuntimeError("a fault of ours")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD + b"Expect: magic\r\n\r\n",
        HEAD + b"A: " + b"y" * 20_000 + b"\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n\x00",
    ],
)
@in_event_loop
async def test_a_malformed_request_is_an_error_of_the_client_in_awss_form(request_bytes: bytes) -> None:
    async with serving(ok) as server:
        status, content = await server.answer(request_bytes)
        assert 400 <= status < 500
        assert set(content) == {"__type", "message"}
        assert server.failures.total == 0
        assert server.events == [] or server.events[0] == CutOff("127.0.0.1", "http")


@in_event_loop
async def test_an_unexpected_error_is_logged_and_its_details_are_not_sent() -> None:
    async with serving(fails) as server:
        status, content = await server.answer(HEAD + b"\r\n")
        assert (status, content["__type"]) == (500, "InternalFailureException")
        assert "fault" not in content["message"]
        assert server.failures.total == 1


@in_event_loop
async def test_a_well_formed_request_is_answered() -> None:
    async with serving(ok) as server:
        assert await server.answer(HEAD + b"Connection: close\r\n\r\n") == (200, {})
        assert server.events == []


@in_event_loop
async def test_what_aiohttps_parser_raises_is_an_error_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    # As aiohttp 3.9 does for "GET //[".
    def fail(_handler: object, _data: bytes) -> None:
        raise ValueError("not a URL")

    monkeypatch.setattr(web.RequestHandler, "data_received", fail)
    async with serving(ok) as server:
        status, content = await server.answer(HEAD + b"\r\n")
        assert (status, content["__type"]) == (400, "InvalidRequestException")
        assert server.events == [CutOff("127.0.0.1", "http")]
        assert server.failures.total == 0


@in_event_loop
async def test_malformed_data_after_a_request_is_an_error_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    # As aiohttp up to 3.13 does for what follows a CONNECT.
    async def fail(*_: object) -> None:
        raise BadHttpMessage("malformed")

    monkeypatch.setattr(web.RequestHandler, "finish_response", fail)
    async with serving(ok) as server:
        status, content = await server.answer(HEAD + b"\r\n")
        assert (status, content["__type"]) == (400, "InvalidRequestException")
        assert server.events == [CutOff("127.0.0.1", "http")]


@in_event_loop
async def test_an_answer_that_breaks_off_half_way_is_not_followed_by_another() -> None:
    async def breaks_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        raise RuntimeError("a fault of ours")

    async with serving(breaks_off) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(HEAD + b"\r\n")
        received = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert received.endswith(b"\r\n\r\nhalf")
