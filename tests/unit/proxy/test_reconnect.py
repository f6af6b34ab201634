# SPDX-License-Identifier: GPL-3.0-or-later
"""When a proxy reconnects, and when it gives up, with a real WebSocket server over TLS."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from peers.event_loop import in_event_loop, until
from peers.links import IgnoringReceiver
from tunnelproxy.errors import TunnelClosed, TunnelRefused
from tunnelproxy.net.endpoint import Endpoint, tls_context
from tunnelproxy.net.route import Route
from tunnelproxy.protocol.session import SUBPROTOCOLS, Mode, Version
from tunnelproxy.proxy.link import Link, LinkLost, LinkTaken, Reconnect, TunnelCredentials
from tunnelproxy.proxy.reconnect import RETRY_FOREVER, RetryPolicy, keep_linked
from tunnelproxy.service.data_plane.server import REPLACED
from tunnelproxy.service.state.certificates import Certificates, server_context

CREDENTIALS = TunnelCredentials(Mode.SOURCE, "the-access-token", "the-client-token")

Step = Callable[[ServerConnection], "Response | None"]


def answer(status: int, words: str = "") -> Step:
    return lambda connection: connection.respond(http.HTTPStatus(status), words)


def accept(_: ServerConnection) -> None:
    return None


async def outcome(
    certificates: Certificates,
    steps: list[Step],
    close: tuple[int, str] = (1001, "later"),
    policy: RetryPolicy = RETRY_FOREVER,
) -> list[Any]:
    """What a proxy reports while the service answers its attempts to connect one by one, and the error that ends it.

    Links that are accepted are closed at once, with a code and a reason.
    """
    left = iter(steps)
    news: list[Any] = []

    def process(connection: ServerConnection, _: Request) -> Response | None:
        return next(left)(connection)

    async def handler(connection: ServerConnection) -> None:
        await connection.close(*close)

    names = [SUBPROTOCOLS[Version.V3]]
    tls = server_context(certificates)
    serving = serve(handler, "127.0.0.1", 0, ssl=tls, subprotocols=names, process_request=process)
    async with serving as server:
        endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            route = Route(endpoint, tls_context(str(certificates.ca)))
            await keep_linked(route, CREDENTIALS, IgnoringReceiver, news.append, policy)
        except Exception as error:
            news.append(error)
    return news


def kinds(news: list[Any]) -> list[type]:
    return [type(item) for item in news]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.net.backoff.Backoff.next_delay", lambda _: 0.01)


def check(run: Callable[[], Awaitable[None]]) -> None:
    in_event_loop(run)()


def test_it_reconnects_after_failures_until_it_is_refused(certificates: Certificates) -> None:
    async def run() -> None:
        news = await outcome(certificates, [answer(503), accept, answer(500), accept, answer(403, "access token")])
        assert kinds(news) == [LinkLost, Link, LinkLost, LinkLost, Link, LinkLost, TunnelRefused]
        assert news[-1].cause == "token-unknown"

    check(run)


def test_a_tunnel_that_was_closed_since_the_last_link_is_no_failure(certificates: Certificates) -> None:
    async def run() -> None:
        news = await outcome(certificates, [accept, answer(403, "its tunnel is closed")])
        assert kinds(news) == [Link, LinkLost, TunnelClosed]

    check(run)


def test_a_tunnel_that_was_closed_before_the_first_link_is_a_failure(certificates: Certificates) -> None:
    async def run() -> None:
        assert kinds(await outcome(certificates, [answer(403, "its tunnel is closed")])) == [TunnelRefused]

    check(run)


def test_a_proxy_whose_place_was_taken_does_not_reconnect(certificates: Certificates) -> None:
    async def run() -> None:
        news = await outcome(certificates, [accept], close=(1008, REPLACED))
        assert kinds(news) == [Link, LinkTaken]
        assert "another proxy has connected as the source of this tunnel" in str(news[-1])

    check(run)


def test_a_certificate_that_becomes_invalid_later_is_retried(certificates: Certificates, tmp_path: Path) -> None:
    """As with a captive portal on the way: on the first attempt it is the operator's mistake, later it goes away."""

    async def run() -> None:
        others = Certificates(tmp_path / "keys", tmp_path / "ca")
        others.ensure("localhost")
        names = [SUBPROTOCOLS[Version.V3]]
        news: list[Any] = []
        port = 0
        keeping = None
        for known in (certificates, others, certificates):
            # The tunnel's service, another one in its place, and the first again.
            async with serve(hold, "127.0.0.1", port, ssl=server_context(known), subprotocols=names) as server:
                port = server.sockets[0].getsockname()[1]
                if keeping is None:
                    route = Route(Endpoint("127.0.0.1", port), tls_context(str(certificates.ca)))
                    keeping = asyncio.ensure_future(keep_linked(route, CREDENTIALS, IgnoringReceiver, news.append))
                told = len(news)
                await until(
                    lambda told=told, known=known: any(fits(item, known is certificates) for item in news[told:])
                )
        keeping.cancel()
        await asyncio.wait({keeping})
        assert keeping.cancelled()

    check(run)


def test_the_retry_policy_limits_the_failures_in_a_row(certificates: Certificates) -> None:
    async def run() -> None:
        steps = [answer(503), accept, answer(503), answer(503), answer(403)]
        news = await outcome(certificates, steps, policy=RetryPolicy(attempts=2))
        assert kinds(news) == [LinkLost, Link, LinkLost, LinkLost, LinkLost, LinkLost]
        assert "the service answers 503" in str(news[-1])
        assert news[-1] is news[-2]

    check(run)


def test_the_retry_policy_may_rule_out_reconnecting(certificates: Certificates) -> None:
    async def run() -> None:
        news = await outcome(certificates, [answer(503), accept, accept], policy=RetryPolicy(reconnect=False))
        assert kinds(news) == [LinkLost, Link, LinkLost, LinkLost]
        assert news[-1] is news[-2]

    check(run)


def test_an_untrusted_certificate_ends_the_first_attempt(certificates: Certificates, tmp_path: Path) -> None:
    others = Certificates(tmp_path / "keys", tmp_path / "ca")
    others.ensure("localhost")

    async def run() -> None:
        tls = server_context(others)
        async with serve(hold, "127.0.0.1", 0, ssl=tls, subprotocols=[SUBPROTOCOLS[Version.V3]]) as server:
            endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
            route = Route(endpoint, tls_context(str(certificates.ca)))
            news: list[Any] = []
            with pytest.raises(LinkLost, match="cannot be verified"):
                await keep_linked(route, CREDENTIALS, IgnoringReceiver, news.append)
            assert news == []

    check(run)


def test_a_link_that_is_replaced_on_purpose_comes_back_at_once(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnelproxy.net.backoff.Backoff.next_delay", lambda _: 3600)

    async def run() -> None:
        tls = server_context(certificates)
        async with serve(hold, "127.0.0.1", 0, ssl=tls, subprotocols=[SUBPROTOCOLS[Version.V3]]) as server:
            endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
            route = Route(endpoint, tls_context(str(certificates.ca)))
            news: list[Any] = []
            keeping = asyncio.ensure_future(keep_linked(route, CREDENTIALS, IgnoringReceiver, news.append))
            await until(lambda: news)
            news[0].fail(Reconnect("for a test"), 1000)
            await until(lambda: kinds(news) == [Link, Reconnect, Link])
            keeping.cancel()
            await asyncio.wait({keeping})
            # The last link is closed with the task.
            assert isinstance(await news[-1].lost, LinkLost)

    check(run)


def fits(item: object, linked: bool) -> bool:
    return isinstance(item, Link) if linked else "cannot be verified" in str(item)


async def hold(connection: ServerConnection) -> None:
    await connection.wait_closed()
