# SPDX-License-Identifier: Apache-2.0
"""aiohttp's handler of one connection to the control API, which takes what it cannot parse for a fault of the client's.

aiohttp itself answers with plain text, and logs a traceback for each.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ..events import CutOff, EventHandler
from ..logs.unexpected_errors import UnexpectedErrors
from .http import refusal_of_malformed

__all__ = ["RequestHandler"]

_MOST_WORDS = 200


class RequestHandler(web.RequestHandler):
    """One connection.

    Args:
        server: aiohttp's.
        notify: is told of requests that cannot be parsed.
        failures: logs what should not have happened.
        keepalive_timeout: seconds for which an idle connection stays.
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
            # A client signs the body as it is sent: a compressed one would not fit its signature.
            auto_decompress=False,
        )
        self._notify = notify
        self._failures = failures

    def data_received(self, data: bytes) -> None:
        """Parse what a client has sent."""
        try:
            super().data_received(data)
        except Exception:  # aiohttp 3.9 lets through what its parser's parts raise, such as yarl's of "GET //["
            self._hang_up()

    def _hang_up(self) -> None:
        """Answer what cannot be parsed where aiohttp has no request to answer."""
        transport = self.transport
        if transport is None:
            return
        peer = transport.get_extra_info("peername") or [""]
        self._notify(CutOff(str(peer[0]), "http"))
        body = refusal_of_malformed("Malformed request.", HTTPStatus.BAD_REQUEST)
        lines = ["HTTP/1.1 400 Bad Request", "Connection: close", f"Content-Length: {body.content_length}"]
        lines += [f"{name}: {value}" for name, value in body.headers.items() if name != "Content-Length"]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        transport.write(head + (body.body if isinstance(body.body, bytes) else b""))
        transport.close()

    async def finish_response(self, request: web.BaseRequest, resp: web.StreamResponse, *more: Any) -> Any:
        """Send an answer: in AWS's form, too, where aiohttp refuses a request itself, as for an unknown ``Expect``."""
        if isinstance(resp, web.HTTPException):
            resp = self._refuse(request, resp.text, resp.status)
        try:
            return await super().finish_response(request, resp, *more)
        except HttpProcessingError as error:
            # aiohttp up to 3.13 parses what follows a CONNECT before it sends the answer.
            self._hang_up()
            raise ConnectionError("what follows the request is none") from error

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request, or to one that failed without an answer."""
        if request.writer.output_size > 0:
            raise ConnectionError("half of an answer is sent already")
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return self._refuse(request, message, status)
        if isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            # aiohttp quotes an unknown one in its answer, and fails where that is not UTF-8.
            return self._refuse(request, "unknown Expect", HTTPStatus.EXPECTATION_FAILED)
        self._failures.report("a connection to the control API has failed", exc)
        answer = refusal_of_malformed("The service failed; its log has more.", status)
        answer.force_close()
        return answer

    def _refuse(self, request: web.BaseRequest, message: str | None, status: int) -> web.Response:
        self._notify(CutOff(request.remote or "", "http"))
        words = " ".join((message or "").split())[:_MOST_WORDS]
        answer = refusal_of_malformed(f"Malformed request: {words}", status)
        answer.force_close()
        return answer

    def log_exception(self, *arguments: Any, **settings: Any) -> None:
        """What aiohttp would log for each connection, is logged once."""
        self._failures.report(str(arguments[0]) if arguments else "aiohttp", settings.get("exc_info"))
