# SPDX-License-Identifier: GPL-3.0-or-later
"""A device's web pages: a login that sets a cookie, a WebSocket, and a record of every request."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from aiohttp import WSMsgType, web

from .process import free_port

__all__ = ["Seen", "WebApp"]


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    path: str
    cookies: dict[str, str]


class WebApp:
    """Use it as a context manager: inside, it runs on a loopback port.

    ``/login`` sets the cookie ``session``; ``/socket`` is a WebSocket that echoes; ``/upload`` returns the number of
    received bytes. All other paths are a page with the app's name.

    Args:
        name: the name on its pages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.seen: list[Seen] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> WebApp:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def paths(self) -> list[str]:
        """The paths of all requests, in order."""
        return [seen.path for seen in self.seen]

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(Seen(request.method, request.path_qs, dict(request.cookies)))
        if request.path == "/socket":
            return await self._echo(request)
        if request.path == "/upload":
            size = 0
            async for piece in request.content.iter_any():
                size += len(piece)
            return web.Response(text=str(size))
        # Without an icon in the page, browsers request one at some time.
        page = f"<title>{self.name}</title><link rel=icon href=data:,><p>This is {self.name}"
        response = web.Response(text=page, content_type="text/html")
        if request.path == "/login":
            response.set_cookie("session", f"secret-of-{self.name}")
        return response

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
        return socket
