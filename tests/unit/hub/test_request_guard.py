# SPDX-License-Identifier: GPL-3.0-or-later
"""Which requests go on to a device's web server, and what the others are answered."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelproxy.hub.request_guard import HEAD_LIMIT, DevicePage, RequestGuard

PAGE = DevicePage("pump-7", "HTTP1", "pump-7.localhost", 40123)
OWN = "pump-7.localhost:40123"


def request(
    method: str = "GET", target: str = "/", *, host: str | None = OWN, body: bytes = b"", **headers: str
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *([] if host is None else [f"Host: {host}"])]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def guarded(*pieces: bytes) -> tuple[bytes, bytes | None]:
    """What goes on of these pieces, and what the client is answered."""
    guard = RequestGuard(PAGE)
    return b"".join(guard.receive(piece) for piece in pieces if piece), guard.answer


def status_of(*pieces: bytes) -> int | None:
    """The status of the guard's own answer to a first request, of which nothing goes on then; None if it has none."""
    passed, answer = guarded(*pieces)
    assert answer is None or not passed
    return None if answer is None else int(answer.split()[1])


NAVIGATION = {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
LINK = {**NAVIGATION, "Sec_Fetch_Site": "cross-site"}
OWN_FETCH = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Dest": "empty", "Cookie": "a=b"}
WEBSOCKET = {"Upgrade": "websocket", "Connection": "Upgrade"}

ACCEPTED = {
    "typed into a browser": request(**NAVIGATION),
    "with a cookie": request(**NAVIGATION, Cookie="session=1"),
    "a link on another page": request(**LINK),
    "a form of the device's own page": request("POST", **OWN_FETCH, Origin=f"http://{OWN}", Content_Length="0"),
    "a page that hides its origin from itself": request("POST", **OWN_FETCH, Origin="null"),
    "a browser without fetch metadata": request(Cookie="session=1", Referer=f"http://{OWN}/"),
    "the device's own WebSocket": request(**WEBSOCKET, **OWN_FETCH, Origin=f"http://{OWN}"),
    "upper case": request(host="PUMP-7.LocalHost:40123", **OWN_FETCH, Origin=f"http://{OWN}"),
    "a trailing dot": request(host="pump-7.localhost.:40123"),
    "no port": request(host="pump-7.localhost"),
    "a forwarded port": request(host="pump-7.localhost:8080", **OWN_FETCH, Origin="http://pump-7.localhost:8080"),
    "the whole URL as target": request(target=f"http://{OWN}/x"),
    "a program, by 127.0.0.1": request(host="127.0.0.1:40123"),
    "a program, by localhost": request("PUT", host="localhost:40123", Content_Length="0"),
    "a program, by IPv6": request(host="[::1]:40123"),
    "a program, in HTTP/1.0 and without a host": b"GET / HTTP/1.0\r\n\r\n",
}


@pytest.mark.parametrize("head", ACCEPTED.values(), ids=ACCEPTED)
def test_what_goes_on(head: bytes) -> None:
    assert guarded(head) == (head, None)


REFUSED = {
    "a name that resolves here (DNS rebinding)": (request(host="evil.example:40123"), 421),
    "that name, as a browser sends it": (request(host="evil.example:40123", **OWN_FETCH), 421),
    "another device": (request(host="pump-8.localhost:40123"), 421),
    "below the device's name": (request(host="x.pump-7.localhost:40123"), 421),
    "what only ends so": (request(host="evil-pump-7.localhost:40123"), 421),
    "all addresses": (request(host="0.0.0.0:40123"), 421),
    "no host that can be": (request(host="pump-7.localhost:40123@evil.example"), 421),
    "two ports": (request(host="pump-7.localhost:1:2"), 421),
    "another host in the target": (request(target="http://evil.example/"), 421),
    "a tunnel to elsewhere": (request("CONNECT", "evil.example:443"), 421),
    "a form on another page": (request("POST", Origin="https://evil.example", Content_Length="0"), 403),
    "a form on another page, with metadata": (request("POST", **LINK, Origin="https://evil.example"), 403),
    "a form of no origin": (request("POST", **LINK, Origin="null"), 403),
    "an image on another page": (request(**{**LINK, "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}), 403),
    "within another page": (request(**{**LINK, "Sec_Fetch_Dest": "iframe"}), 403),
    "a page on another port": (request("POST", **{**LINK, "Sec_Fetch_Site": "same-site"}), 403),
    "another device's WebSocket": (request(**WEBSOCKET, Origin="http://pump-8.localhost:40124"), 403),
    "a WebSocket from another port": (request(**WEBSOCKET, Origin="http://pump-7.localhost:1"), 403),
    "a browser's fetch, by 127.0.0.1": (request(host="127.0.0.1:40123", **OWN_FETCH), 421),
    "a browser's cookie, by localhost": (request(host="localhost:40123", Cookie="a=b"), 421),
    "a WebSocket by 127.0.0.1": (request(host="127.0.0.1:40123", **WEBSOCKET, Origin="http://127.0.0.1:40123"), 421),
    "within another page, by 127.0.0.1": (request(host="127.0.0.1", **{**LINK, "Sec_Fetch_Dest": "iframe"}), 421),
    "no host": (request(host=None), 400),
    "two hosts": (request(Host="evil.example"), 400),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    "not even text": (b"\x00\x01\x02", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "two lengths": (request("POST", Content_Length="3", Transfer_Encoding="chunked", body=b"0\r\n\r\n"), 400),
    "two other lengths": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a space before a colon": (b"GET / HTTP/1.1\r\nHost : pump-7.localhost\r\n\r\n", 400),
    "a head that is too long": (request(X="x" * HEAD_LIMIT), 431),
    "a head that never ends": (request(X="x" * HEAD_LIMIT)[:-4], 431),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(data: bytes, status: int) -> None:
    assert status_of(data) == status


def test_a_refusal_says_what_to_do_and_ends_the_connection() -> None:
    _passed, answer = guarded(request(host="evil.example\x9b"))
    assert answer is not None
    head, _, text = answer.decode().partition("\r\n\r\n")
    assert "Connection: close" in head
    assert f"Content-Length: {len(text)}" in head
    assert "was not forwarded to pump-7: its host is 'evil.example??'" in text
    assert "open http://pump-7.localhost:40123/\n" in text
    assert "iotops_tunnel_ports=HTTP1=40123,any-host" in text


def test_an_answer_to_head_has_no_body() -> None:
    _passed, answer = guarded(request("HEAD", host="evil.example"))
    assert answer is not None
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("host", "there"),
    [
        ("127.0.0.1:40123", "http://pump-7.localhost:40123/a?b=c"),
        ("localhost:8080", "http://pump-7.localhost:8080/a?b=c"),
        ("localhost", "http://pump-7.localhost/a?b=c"),
    ],
)
def test_a_browser_that_goes_to_the_loopback_is_sent_to_the_devices_name(host: str, there: str) -> None:
    passed, answer = guarded(request(target="/a?b=c", host=host, **NAVIGATION, Cookie="session=of-another-device"))
    assert passed == b""
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 307 ")
    assert f"\r\nLocation: {there}\r\n".encode() in answer


def test_each_request_of_a_connection_is_looked_at() -> None:
    first, upload = request(), request("POST", Content_Length="4", body=b"GET ")
    chunked = request("POST", Transfer_Encoding="chunked", body=b"3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n")
    good = first + upload + chunked
    assert guarded(good, request(host="evil.example"))[0] == good
    passed, answer = guarded(good + request(host="evil.example") + first)
    assert (passed, answer is None) == (good, False)


def test_after_a_refusal_nothing_goes_on() -> None:
    passed, answer = guarded(request(host="evil.example"), request())
    assert (passed, answer is None) == (b"", False)


def test_a_broken_chunk_ends_the_connection() -> None:
    head = request("POST", Transfer_Encoding="chunked")
    passed, answer = guarded(head, b"no number\r\n")
    assert (passed, answer is None) == (head, False)


PASSED_WHOLE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00 ... Host: evil.example\r\n\r\n",
    "WebSocket": request(**WEBSOCKET) + b"\x81\x85 ... GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
}


@pytest.mark.parametrize("data", PASSED_WHOLE.values(), ids=PASSED_WHOLE)
def test_what_is_no_http_any_more_passes_whole(data: bytes) -> None:
    assert guarded(data) == (data, None)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Requests, accepted and refused, one behind the other, with what may come at a connection's end."""
    good = st.sampled_from([request(), request(host="127.0.0.1"), request(X="x" * 5000)])
    upload = st.binary(max_size=300).map(lambda body: request("POST", Content_Length=str(len(body)), body=body))
    chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=4).map(
        lambda parts: request("POST", Transfer_Encoding="chunked", body=_chunked(parts))
    )
    ends = st.sampled_from(
        [b"", *PASSED_WHOLE.values(), *(data for data, _status in REFUSED.values() if len(data) < 999)]
    )
    return b"".join(draw(st.lists(st.one_of(good, upload, chunks), max_size=4))) + draw(ends)


def _chunked(parts: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


@settings(max_examples=40)
@given(conversations(), st.lists(st.integers(1, 400), max_size=30))
def test_the_decision_is_the_same_however_the_bytes_are_cut(data: bytes, sizes: list[int]) -> None:
    pieces, rest = [], data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    passed, answer = guarded(data)
    passed_of_pieces, answer_to_pieces = guarded(*pieces, rest)
    assert passed_of_pieces == passed
    # h11's words differ: it may find fault with a line before that is whole.
    assert (answer_to_pieces or b"").split(b"\r\n")[0] == (answer or b"").split(b"\r\n")[0]
    assert data.startswith(passed)


def test_the_body_of_an_upload_is_not_copied() -> None:
    guard = RequestGuard(PAGE)
    guard.receive(request("POST", Content_Length="100000"))
    piece = memoryview(bytes(60000))
    assert guard.receive(piece) is piece
