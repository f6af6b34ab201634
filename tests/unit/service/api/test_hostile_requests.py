# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a client sends is answered or hung up on: no request makes the service fail.

Both ports, in this process, over TCP without TLS; a client without a key, and one with a key whose content is odd.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tunnelproxy.net.accept_loop import accept_connections
from tunnelproxy.service.api.authorization import Authorizer
from tunnelproxy.service.api.http import ControlApi, service_model
from tunnelproxy.service.api.replay_guard import ReplayGuard
from tunnelproxy.service.api.request_handler import RequestHandler
from tunnelproxy.service.api.things import ThingOperations
from tunnelproxy.service.api.tunnels import TunnelOperations
from tunnelproxy.service.data_plane.server import TUNNEL_CLOSED, DataPlane
from tunnelproxy.service.logs.unexpected_errors import UnexpectedErrors
from tunnelproxy.service.state.store import Store

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

MODEL = service_model()
SIGNATURE = "0" * 64


class Exposed:
    """Both ports of a service."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)  # Python 3.9's locks look for it when they are made
        self.store = Store(folder / "service.db")
        self.failures = UnexpectedErrors()
        self.events: list[Any] = []
        identity = self.store.identity()
        data_plane = DataPlane(self.store, clock=time.time, failures=self.failures, notify=self.events.append)
        control = ControlApi(
            TunnelOperations(
                self.store,
                disconnect=lambda tunnel_id: data_plane.close_tunnel(tunnel_id, TUNNEL_CLOSED),
                revoke=data_plane.revoke,
                clock=time.time,
                tunnel_opened=lambda: None,
                deliver=lambda tunnel, token: None,
            ),
            ThingOperations(self.store),
            Authorizer(identity, self.store.find_tunnel),
            find_key=self.store.find_key,
            region=identity.region,
            account_id=identity.account_id,
            clock=time.time,
            replay_guard=ReplayGuard(time.monotonic),
            notify=self.events.append,
            failures=self.failures,
        )
        self.runner = web.AppRunner(control.application(), shutdown_timeout=0.1)
        self.loop.run_until_complete(self.runner.setup())
        self.loop.set_exception_handler(self.failures.of_loop)
        self.api = self._listen(self._request_handler)
        self.data = self._listen(data_plane.new_connection)
        (key,) = self.store.keys()
        self.credentials = Credentials(key.credentials.access_key_id, key.credentials.secret_access_key)

    def _request_handler(self) -> RequestHandler:
        assert self.runner.server is not None
        return RequestHandler(self.runner.server, notify=self.events.append, failures=self.failures)

    def _listen(self, protocol: Callable[[], asyncio.BaseProtocol]) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))

        def admit(connection: socket.socket, _: Any) -> None:
            self.loop.create_task(self.loop.connect_accepted_socket(protocol, connection))

        self.loop.create_task(accept_connections(listener, admit))
        return listener

    def send(self, listener: socket.socket, data: bytes, *, then_end: bool = False) -> bytes:
        """What is answered, until the service hangs up."""
        return self.loop.run_until_complete(asyncio.wait_for(self._send(listener, data, then_end), 20))

    async def _send(self, listener: socket.socket, data: bytes, then_end: bool) -> bytes:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            writer.write(data)
            if then_end:
                writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()

    def close(self) -> None:
        self.loop.run_until_complete(self.runner.cleanup())
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        asyncio.set_event_loop(None)
        self.loop.close()
        self.api.close()
        self.data.close()
        self.store.close()


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exposed]:
    service = Exposed(tmp_path_factory.mktemp("exposed"))
    yield service
    service.close()


def request(
    method: bytes = b"POST", target: bytes = b"/", headers: dict[str, bytes] | None = None, body: bytes = b"{}"
) -> bytes:
    given_ones = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in (headers or {}).items())
    return (
        method
        + b" "
        + target
        + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        + given_ones
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


def authorization(key_id: bytes, service: bytes = b"IoTSecuredTunneling") -> bytes:
    return (
        b"AWS4-HMAC-SHA256 Credential=%s/20260101/us-east-1/%s/aws4_request, "
        b"SignedHeaders=host;x-amz-date, Signature=%s" % (key_id, service, SIGNATURE.encode())
    )


def assert_a_fault_of_the_client(exposed: Exposed, answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert 400 <= status < 500, answer
    assert re.search(rb"(?i)x-amzn-ErrorType: \w+Exception\r\n", head), answer
    assert set(json.loads(body)) == {"__type", "message"}
    assert exposed.failures.total == 0


one_line = st.binary(max_size=60).map(lambda data: data.translate(None, b"\r\n"))
names = st.sampled_from(
    [
        "Authorization",
        "X-Amz-Date",
        "X-Amz-Target",
        "X-Amz-Content-Sha256",
        "X-Amz-Security-Token",
        "Content-Encoding",
        "Content-Type",
        "Cookie",
        "Expect",
        "Upgrade",
    ]
)
words = st.one_of(one_line, one_line.map(authorization), st.sampled_from([b"gzip", b"br", b"20260101T000000Z"]))


@quick
@given(
    method=st.sampled_from([b"GET", b"POST", b"OPTIONS", b"CONNECT", b"PUT"]),
    target=st.one_of(st.just(b"/"), one_line.map(lambda path: b"/" + path.replace(b" ", b""))),
    headers=st.dictionaries(names, words, max_size=5),
    body=st.binary(max_size=100),
)
@example(b"POST", b"/", {"Authorization": authorization("ÄKIA".encode()), "X-Amz-Date": b"20260101T000000Z"}, b"{}")
@example(b"POST", b"/", {"Authorization": authorization(b"\xff\xfe"), "X-Amz-Date": b"20260101T000000Z"}, b"{}")
@example(b"POST", b"/", {"Content-Encoding": b"gzip"}, b"not gzip!!")
@example(b"POST", b"/", {"Content-Encoding": b"br"}, b"{}")
@example(b"POST", b"/", {"Expect": b"magic"}, b"{}")
@example(b"GET", b"/", {"Expect": b"\x80"}, b"")
@example(b"CONNECT", b"/", {}, b"\x00")
@example(b"GET", b"//[", {}, b"")
@example(b"GET", b"http://[", {}, b"")
@example(b"CONNECT", b"x:1", {}, b"")
@example(b"OPTIONS", b"*", {}, b"")
def test_a_request_without_a_key_is_an_error_of_the_client(
    exposed: Exposed, method: bytes, target: bytes, headers: dict[str, bytes], body: bytes
) -> None:
    assert_a_fault_of_the_client(exposed, exposed.send(exposed.api, request(method, target, headers, body)))


@quick
@given(target=one_line, date=one_line)
@example(target=b"/\xff", date=b"20260101T000000Z")
@example(target=b"[x", date=b"20260101T000000Z")
def test_the_id_of_a_known_key_makes_no_difference(exposed: Exposed, target: bytes, date: bytes) -> None:
    headers = {"Authorization": authorization(exposed.credentials.access_key.encode()), "X-Amz-Date": date}
    answer = exposed.send(exposed.api, request(target=target.replace(b" ", b"") or b"/", headers=headers))
    assert_a_fault_of_the_client(exposed, answer)


@quick
@given(data=st.binary(max_size=300))
@example(b"\x00\x01\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n")
@example(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{}")
@example(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"y" * 20_000 + b"\r\n\r\n")
def test_data_that_is_no_request_does_no_harm(exposed: Exposed, data: bytes) -> None:
    for listener in (exposed.api, exposed.data):
        answer = exposed.send(listener, data, then_end=True)
        assert not answer or 400 <= int(answer.split()[1]) < 500
    assert exposed.failures.total == 0


@quick
@given(target=one_line, headers=st.dictionaries(st.sampled_from(["access-token", "client-token", "Cookie"]), one_line))
@example(b"//[", {})
@example(b"/tunnel?local-proxy-mode=source", {"access-token": b"\xff"})
@example(b"/tunnel?local-proxy-mode=\xff", {"access-token": b"x"})
def test_an_invalid_handshake_is_rejected_or_the_connection_closed(
    exposed: Exposed, target: bytes, headers: dict[str, bytes]
) -> None:
    answer = exposed.send(exposed.data, request(b"GET", target, headers, b""), then_end=True)
    assert not answer or 400 <= int(answer.split()[1]) < 500
    assert exposed.failures.total == 0


def test_a_malformed_handshake_is_reported_as_one(exposed: Exposed) -> None:
    answer = exposed.send(exposed.data, b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n", then_end=True)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"x-iotops-cause: bad-request" in answer


def signed(exposed: Exposed, method: str, path: str, body: bytes, target: str = "", service: str = "") -> bytes:
    again = AWSRequest(method, f"http://x{path}", headers={"X-Amz-Target": target} if target else {}, data=body)
    SigV4Auth(exposed.credentials, service or "IoTSecuredTunneling", "us-east-1").add_auth(again)
    headers = {name: value.encode() for name, value in again.headers.items() if name.lower() != "content-length"}
    return request(method.encode(), path.encode(), headers, body)


def page(content: str) -> str:
    return base64.urlsafe_b64encode(content.encode()).decode()


texts = st.text(st.characters(exclude_categories=()), max_size=20)
numbers = st.integers(min_value=-(10**30), max_value=10**30)
pages = st.one_of(numbers.map(lambda number: page(f"before:{number}")), st.text(max_size=9).map(page))
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | texts | pages,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def calls(draw: Any) -> tuple[str, dict[str, Any]]:
    operation = draw(st.sampled_from(sorted(MODEL.operation_names)))
    shape = MODEL.operation_model(operation).input_shape
    members = list(shape.members) if shape is not None else []
    return operation, draw(st.dictionaries(st.sampled_from(members), values)) if members else {}


@quick
@given(call=calls())
@example(("ListTunnels", {"nextToken": page("before:" + "9" * 26)}))
@example(("ListTunnels", {"nextToken": page("before:\ud7ff")}))
@example(("TagResource", {"resourceArn": "arn:\ud800", "tags": [{"key": "\ud800", "value": "x"}]}))
@example(("OpenTunnel", {"description": "\ud800"}))
def test_odd_content_of_a_call_is_an_error_of_the_caller(exposed: Exposed, call: tuple[str, dict[str, Any]]) -> None:
    operation, params = call
    body = json.dumps(params).encode()
    answer = exposed.send(exposed.api, signed(exposed, "POST", "/", body, f"IoTSecuredTunneling.{operation}"))
    assert int(answer.split()[1]) < 500, answer
    assert exposed.failures.total == 0


@quick
@given(query=st.dictionaries(st.sampled_from(["nextToken", "maxResults", "attributeName"]), texts), name=texts)
@example({"nextToken": page("after:\x00")}, "")
@example({"maxResults": "9" * 30}, "")
def test_an_odd_call_to_the_registry_is_an_error_of_the_caller(
    exposed: Exposed, query: dict[str, str], name: str
) -> None:
    def encoded(text: str) -> str:
        return quote(text.encode(errors="replace"), safe="")

    path = "/things" + (f"/{encoded(name)}" if name else "")
    path += "?" + "&".join(f"{key}={encoded(value)}" for key, value in sorted(query.items())) if query else ""
    answer = exposed.send(exposed.api, signed(exposed, "GET", path, b"", service="iot"))
    assert int(answer.split()[1]) < 500, answer
    assert exposed.failures.total == 0
