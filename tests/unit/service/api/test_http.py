# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API over HTTP in this process, with clocks that the test moves, and what it has on record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from peers.event_loop import in_event_loop, until
from peers.signing import now, post, sign
from tunnelproxy.service.api import http
from tunnelproxy.service.api.authorization import Authorizer
from tunnelproxy.service.api.http import ControlApi
from tunnelproxy.service.api.replay_guard import GRACE, ReplayGuard
from tunnelproxy.service.api.things import ThingOperations
from tunnelproxy.service.api.tunnels import TunnelOperations
from tunnelproxy.service.events import ControlCall, Event
from tunnelproxy.service.model import AccessKey, new_key_pair
from tunnelproxy.service.state.store import Store


@dataclass
class Api:
    url: str
    store: Store
    control: ControlApi = field(init=False)
    elapsed: float = 0.0
    events: list[Event] = field(default_factory=list)

    def headers(self, operation: str, body: bytes = b"{}", key: AccessKey | None = None) -> dict[str, str]:
        pair = (key or self.store.keys()[0]).credentials
        return sign(
            self.url,
            operation,
            key_id=pair.access_key_id,
            secret=pair.secret_access_key,
            signed_at=now(),
            body=body,
        )

    async def post(self, headers: dict[str, str], body: bytes = b"{}") -> tuple[int, dict[str, object]]:
        return await asyncio.to_thread(post, self.url, headers, body)

    @property
    def last(self) -> ControlCall:
        assert isinstance(self.events[-1], ControlCall)
        return self.events[-1]


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Api]:
    store = Store(folder / "service.db")
    api = Api("", store)
    operations = TunnelOperations(
        store,
        disconnect=lambda tunnel_id: None,
        revoke=lambda tunnel_id, mode: None,
        clock=time.time,
        tunnel_opened=lambda: None,
        deliver=lambda tunnel, token: None,
    )
    identity = store.identity()
    control = api.control = ControlApi(
        operations,
        ThingOperations(store),
        Authorizer(identity, store.find_tunnel),
        find_key=store.find_key,
        region=identity.region,
        account_id=identity.account_id,
        clock=time.time,
        replay_guard=ReplayGuard(lambda: api.elapsed),
        notify=api.events.append,
    )
    runner = web.AppRunner(control.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield api
    finally:
        await runner.cleanup()
        store.close()


@in_event_loop
async def test_a_replayed_request_is_refused_and_opens_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        headers = api.headers("OpenTunnel")
        assert (await api.post(headers))[0] == 200
        api.elapsed = GRACE + 1
        status, answer = await api.post(headers)
        assert (status, answer["__type"]) == (403, "InvalidSignatureException")
        assert len(api.store.list_tunnels(thing_name=None, before=None, limit=9)) == 1
        assert (api.last.key, api.last.outcome) == ("default", "InvalidSignatureException")


@in_event_loop
async def test_each_call_is_on_record_with_who_what_and_how_it_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        body = b'{"destinationConfig": {"thingName": "pump", "services": ["SSH1"]}}'
        _, opened = await api.post(api.headers("OpenTunnel", body), body)
        tunnel_id = opened["tunnelId"]
        call = api.last
        assert (call.key, call.operation, call.thing, call.tunnel) == ("default", "OpenTunnel", "pump", tunnel_id)
        assert (call.outcome, call.status, call.address) == ("ok", 200, "127.0.0.1")
        assert 0 < call.seconds < 10

        reader = AccessKey("reader", new_key_pair(), read_only=True)
        api.store.add_key(reader)
        body = b'{"tunnelId": "%s"}' % str(tunnel_id).encode()
        await api.post(api.headers("CloseTunnel", body, reader), body)
        call = api.last
        assert (call.key, call.thing, call.tunnel) == ("reader", "pump", tunnel_id)
        assert (call.outcome, call.status) == ("AccessDeniedException", 403)

        forged = AccessKey("forged", new_key_pair())
        await api.post(api.headers("ListTunnels", key=forged))
        call = api.last
        assert (call.key, call.access_key_id) == (None, forged.credentials.access_key_id)
        assert call.outcome == "UnrecognizedClientException"


@in_event_loop
async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_DEADLINE", 0.2)
    async with running(tmp_path) as api:
        reader, writer = await asyncio.open_connection(*api.url.removeprefix("http://").split(":"))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
        writer.close()
    assert head == b"HTTP/1.1 408 Request Timeout\r\n"


@in_event_loop
async def test_a_body_that_is_too_large_is_rejected(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        body = b"x" * (http.MAX_BODY + 1)
        status, answer = await api.post(api.headers("OpenTunnel", body), body)
        assert (status, answer["__type"]) == (413, "RequestEntityTooLargeException")


@in_event_loop
async def test_a_body_that_is_not_json_is_rejected(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        status, answer = await api.post(api.headers("OpenTunnel", b"{"), b"{")
        assert (status, answer["__type"]) == (400, "SerializationException")


@in_event_loop
async def test_an_unknown_operation_is_rejected(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        status, answer = await api.post(api.headers("NoSuchOperation"))
        assert (status, answer["__type"]) == (400, "UnknownOperationException")


@in_event_loop
async def test_while_the_store_cannot_be_written_changes_are_unavailable(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        api.store._db.execute("PRAGMA query_only = 1")
        status, answer = await api.post(api.headers("OpenTunnel"))
        assert (status, answer["__type"]) == (503, "ServiceUnavailableException")
        assert (await api.post(api.headers("ListTunnels")))[0] == 200


@in_event_loop
async def test_an_unexpected_error_is_logged_under_the_request_id_and_its_details_are_not_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("a fault of ours")

    async with running(tmp_path) as api:
        monkeypatch.setattr(api.store, "list_tunnels", fail)
        status, answer = await api.post(api.headers("ListTunnels"))
        assert (status, answer["__type"]) == (500, "InternalFailureException")
        assert api.last.request_id in str(answer["message"])
        assert f"ListTunnels has failed (request {api.last.request_id})" in caplog.text


@in_event_loop
async def test_requests_that_have_begun_are_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        reader, writer = await asyncio.open_connection(*api.url.removeprefix("http://").split(":"))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
        await until(lambda: api.control._running)
        finishing = asyncio.ensure_future(api.control.finish(10))
        writer.write(b"}")
        await asyncio.wait_for(finishing, 5)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 403")
        writer.close()
