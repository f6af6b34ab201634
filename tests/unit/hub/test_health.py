# SPDX-License-Identifier: GPL-3.0-or-later
"""The health check, against HTTP servers at the far end of a stream."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tunnelproxy.hub import health
from tunnelproxy.hub.location import HubError

ACCOUNT = "aws:123456789012:eu-central-1"


@contextmanager
def device(monkeypatch: pytest.MonkeyPatch, answer: bytes | None, *, closes: bool = True) -> Iterator[list[str]]:
    """A device that answers a request with these bytes; the heads of the requests that it got."""
    heads: list[str] = []
    ours, theirs = socket.socketpair()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heads.append(f"{self.requestline}\n{self.headers}")
            if answer is not None:
                self.wfile.write(answer)

    def serve() -> None:
        Handler(ours, ("", 0), None)  # type: ignore[arg-type]
        if closes:
            ours.close()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    monkeypatch.setattr(health, "open_stream", lambda *_, **__: theirs.detach())
    with ours:
        yield heads


def ask(**settings: Any) -> health.Answer:
    return health.ask("pump", "HTTP1", "/health", account=ACCOUNT, **{"timeout": 5.0, **settings})


def test_an_answer_has_its_status_time_and_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with device(monkeypatch, b"HTTP/1.1 503 No\r\nContent-Length: 18\r\n\r\ndisk\x1b is full\nmore") as heads:
        answer = ask(headers={"Accept": "text/plain"})
    assert (answer.status, answer.quote) == (503, "disk  is full")
    assert answer.latency_ms >= 0
    assert heads[0].startswith("GET /health HTTP/1.1\n")
    assert "Host: pump" in heads[0]
    assert "Accept: text/plain" in heads[0]


def test_as_much_of_the_body_as_is_wanted_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"x" * 1000
    with device(monkeypatch, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + body):
        answer = ask(content_limit=900)
    assert answer.content == body[:900]
    assert answer.quote == "x" * 200 + "…"


def test_a_page_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    with device(monkeypatch, b"HTTP/1.1 500 No\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"):
        assert ask().quote == ""


def test_a_redirect_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with device(monkeypatch, b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n") as heads:
        assert (ask().status, len(heads)) == (302, 1)


def test_a_server_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        device(monkeypatch, None, closes=False),
        pytest.raises(
            HubError, match="accepted the connection to HTTP1 but did not answer /health within 0 s"
        ) as caught,
    ):
        ask(timeout=0.05)
    assert caught.value.code == "no-answer"


def test_what_is_no_http_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with device(monkeypatch, b"SSH-2.0-x\r\n"), pytest.raises(HubError, match="something that is not HTTP") as caught:
        ask()
    assert caught.value.code == "not-http"


def test_a_connection_that_is_refused_is_explained_by_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def explain(*arguments: Any, **settings: Any) -> HubError:
        asked.append((arguments, settings))
        return HubError("the device refused HTTP1", code="refused")

    monkeypatch.setattr(health, "explain", explain)
    with device(monkeypatch, None), pytest.raises(HubError, match="the device refused HTTP1"):
        ask()
    assert asked == [(("pump", "HTTP1"), {"refused": True, "account": ACCOUNT})]


class TestCheck:
    def check(self) -> None:
        health.check("pump", "HTTP1", "/health", statuses=(200, 204), account=ACCOUNT, timeout=5.0)

    def test_a_healthy_device_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with device(monkeypatch, b"HTTP/1.1 204 OK\r\n\r\n"):
            self.check()

    def test_another_status_is_told_with_the_device_s_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with device(monkeypatch, b"HTTP/1.1 503 No\r\n\r\ndisk is full"), pytest.raises(HubError) as caught:
            self.check()
        assert caught.value.message == (
            "pump is not healthy: HTTP1 answers /health with status 503: disk is full "
            "(to connect anyway, set iotops_tunnel_health_check to false)"
        )
        assert caught.value.code == "unhealthy"

    def test_no_answer_is_told_with_its_cause(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with (
            device(monkeypatch, b"?"),
            pytest.raises(HubError, match="the health check of pump got no answer: pump an"),
        ):
            self.check()
