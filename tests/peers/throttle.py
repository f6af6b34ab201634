# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy in front of a control API that throttles calls, as AWS does."""

from __future__ import annotations

import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tunnelproxy.service.limits import TokenBucket

__all__ = ["Throttle"]


class Throttle:
    """Use it as a context manager.

    Args:
        url: the control API.
        ca: a file with its certificate authority.
        rates: calls a second by operation, such as ``OpenTunnel``; each has a bucket of two tokens, because calls do
            not arrive as evenly as they are sent.
    """

    def __init__(self, url: str, *, ca: str | None = None, rates: Mapping[str, float] | None = None) -> None:
        self.refusals_left = 0
        self.refused = 0
        self.calls: list[tuple[str, float]] = []
        """The operations that were called, and when, by the monotonic clock; those of a REST API by their path."""
        self.held = 0
        """How many calls wait in :meth:`holding`."""
        self._held_operation = ""
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._buckets = {name: TokenBucket(rate, 2, time.monotonic) for name, rate in (rates or {}).items()}
        throttle, context = self, ssl.create_default_context(cafile=ca) if ca else None

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass_on(None)

            def do_POST(self) -> None:
                self._pass_on(self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def _pass_on(self, body: bytes | None) -> None:
                operation = self.headers.get("X-Amz-Target", self.path).rpartition(".")[2]
                throttle._hold(operation)
                if not throttle._admits(operation):
                    refusal = {"x-amzn-ErrorType": "ThrottlingException", "Content-Type": "application/json"}
                    self._answer(400, refusal, b'{"__type": "ThrottlingException", "message": "Rate exceeded"}')
                    return
                # With its Host, which is signed.
                request = urllib.request.Request(url + self.path, body, headers=dict(self.headers), method=self.command)
                try:
                    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                        self._answer(answer.status, dict(answer.headers), answer.read())
                except urllib.error.HTTPError as error:
                    self._answer(error.code, dict(error.headers), error.read())

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                self.send_response(status)
                kept = {name: value for name, value in headers.items() if name.lower() not in _OF_CONNECTION}
                for name, value in {**kept, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Throttle:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def times(self, operation: str) -> list[float]:
        """When an operation was called."""
        return [at for name, at in self.calls if name == operation]

    @contextmanager
    def refusing(self, times: int, operation: str | None = None) -> Iterator[None]:
        """Throttle this number of requests, of one operation or of any."""
        self.refusals_left, self.refused, self._refusing = times, 0, operation
        try:
            yield
        finally:
            self.refusals_left = 0

    @contextmanager
    def holding(self, operation: str) -> Iterator[None]:
        """Answer no call of an operation until the context ends."""
        self._released.clear()
        self._held_operation = operation
        try:
            yield
        finally:
            self._held_operation = ""
            self._released.set()

    def _hold(self, operation: str) -> None:
        if operation == self._held_operation:
            with self._lock:
                self.held += 1
            self._released.wait(60)

    def _admits(self, operation: str) -> bool:
        with self._lock:
            self.calls.append((operation, time.monotonic()))
            bucket = self._buckets.get(operation)
            if self.refusals_left > 0 and self._refusing in (None, operation):
                self.refusals_left -= 1
            elif bucket is None or bucket.try_take():
                return True
            self.refused += 1
            return False


_OF_CONNECTION = ("connection", "content-length", "date", "server", "transfer-encoding")
