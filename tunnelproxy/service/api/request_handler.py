# SPDX-License-Identifier: Apache-2.0
"""aiohttp's handler of a connection to the control API, which treats malformed requests as errors of the client.

aiohttp's own handler answers them with plain text, and logs a traceback for each.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ..events import CutOff, EventHandler
from ..logs.unexpected_errors import UnexpectedErrors
from .http import malformed_answer

__all__ = ["RequestHandler"]

_MAX_MESSAGE = 200


class RequestHandler(web.RequestHandler):
    """One connection.

    Args:
        server: aiohttp's server.
        notify: called with each request that cannot be parsed.
        failures: logs unexpected errors.
        keepalive_timeout: seconds after which an idle connection is closed.
    """

    __slots__ = ("_failures", "_notify")

    def __init__(
        self, server: web.Server, *, notify: EventHandler, failures: UnexpectedErrors, keepalive_timeout: float = 75.0
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=cast(Any, None),
            keepalive_timeout=keepalive_timeout,
            # The signature covers the body as sent; a decompressed body would not match it.
            auto_decompress=False,
        )
        self._notify = notify
        self._failures = failures

    def data_received(self, data: bytes) -> None:
        """Parse data from the client."""
        try:
            super().data_received(data)
        except Exception:  # aiohttp 3.9 does not catch what yarl raises for "GET //["
            self._reject_and_close()

    def _reject_and_close(self) -> None:
        """Answer malformed data for which aiohttp has no request object."""
        transport = self.transport
        if transport is None:
            return
        peer = transport.get_extra_info("peername") or [""]
        self._notify(CutOff(str(peer[0]), "http"))
        body = malformed_answer("Malformed request.", HTTPStatus.BAD_REQUEST)
        lines = ["HTTP/1.1 400 Bad Request", "Connection: close", f"Content-Length: {body.content_length}"]
        lines += [f"{name}: {value}" for name, value in body.headers.items() if name != "Content-Length"]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        transport.write(head + (body.body if isinstance(body.body, bytes) else b""))
        transport.close()

    async def finish_response(self, request: web.BaseRequest, resp: web.StreamResponse, *more: Any) -> Any:
        """Send an answer in AWS's form, even if aiohttp itself rejects the request, as for an unknown ``Expect``."""
        if isinstance(resp, web.HTTPException):
            resp = self._reject(request, resp.text, resp.status)
        try:
            return await super().finish_response(request, resp, *more)
        except HttpProcessingError as error:
            # aiohttp up to 3.13 parses what follows a CONNECT before it sends the answer.
            self._reject_and_close()
            raise ConnectionError("malformed data follows the request") from error

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a malformed request, or to one that failed without an answer."""
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer has been sent")
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return self._reject(request, message, status)
        if isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            # aiohttp quotes an unknown value in its answer, and fails if that is not UTF-8.
            return self._reject(request, "unknown Expect", HTTPStatus.EXPECTATION_FAILED)
        self._failures.report("a connection to the control API failed", exc)
        answer = malformed_answer("The service failed; its log has the details.", status)
        answer.force_close()
        return answer

    def _reject(self, request: web.BaseRequest, message: str | None, status: int) -> web.Response:
        self._notify(CutOff(request.remote or "", "http"))
        words = " ".join((message or "").split())[:_MAX_MESSAGE]
        answer = malformed_answer(f"Malformed request: {words}", status)
        answer.force_close()
        return answer

    def log_exception(self, *arguments: Any, **settings: Any) -> None:
        """Log what aiohttp would log for each connection, but at a limited rate."""
        self._failures.report(str(arguments[0]) if arguments else "aiohttp", settings.get("exc_info"))
