# SPDX-License-Identifier: GPL-3.0-or-later
"""What a handshake request must and must not contain."""

from __future__ import annotations

import pytest
from websockets.datastructures import Headers

from tunnelproxy.protocol.session import Mode
from tunnelproxy.service.data_plane.handshake import (
    MAX_REQUEST,
    Cause,
    HandshakeRejected,
    RequestReader,
    read_handshake,
)

TOKEN, CLIENT_TOKEN = "AQ-token", "c" * 32
SOURCE = "/tunnel?local-proxy-mode=source"


def test_the_token_comes_in_a_header() -> None:
    found = read_handshake(SOURCE, Headers({"access-token": TOKEN, "client-token": CLIENT_TOKEN}))
    assert (found.mode, found.access_token, found.client_token) == (Mode.SOURCE, TOKEN, CLIENT_TOKEN)
    assert TOKEN not in repr(found)
    assert CLIENT_TOKEN not in repr(found)


def test_the_token_comes_in_a_cookie() -> None:
    headers = Headers({"Cookie": f"theme=dark; awsiot-tunnel-token={TOKEN}; x=y"})
    found = read_handshake("/tunnel?local-proxy-mode=destination", headers)
    assert (found.mode, found.access_token, found.client_token) == (Mode.DESTINATION, TOKEN, None)


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/", [("access-token", TOKEN)]),
        ("//[", [("access-token", TOKEN)]),
        ("/tunnel/?local-proxy-mode=source", [("access-token", TOKEN)]),
        ("/tunnel", [("access-token", TOKEN)]),
        ("/tunnel?local-proxy-mode=Source", [("access-token", TOKEN)]),
        ("/tunnel?local-proxy-mode=source&local-proxy-mode=source", [("access-token", TOKEN)]),
        (SOURCE, []),
        (SOURCE, [("access-token", TOKEN), ("access-token", TOKEN)]),
        (SOURCE, [("access-token", f"{TOKEN}, {TOKEN}")]),
        (SOURCE, [("access-token", TOKEN), ("Cookie", f"awsiot-tunnel-token={TOKEN}")]),
        (SOURCE, [("Cookie", f"awsiot-tunnel-token={TOKEN}; awsiot-tunnel-token={TOKEN}")]),
        (SOURCE, [("access-token", TOKEN), ("client-token", CLIENT_TOKEN), ("client-token", CLIENT_TOKEN)]),
        (SOURCE, [("access-token", TOKEN), ("client-token", "c" * 31)]),
        (SOURCE, [("access-token", TOKEN), ("client-token", "c" * 129)]),
        (SOURCE, [("access-token", TOKEN), ("client-token", "c" * 31 + "_")]),
    ],
)
def test_anything_else_is_a_bad_request(target: str, headers: list[tuple[str, str]]) -> None:
    with pytest.raises(HandshakeRejected) as caught:
        read_handshake(target, Headers(headers))
    assert (caught.value.cause, caught.value.status) == (Cause.BAD_REQUEST, 400)
    assert TOKEN not in caught.value.sentence


def test_a_request_is_complete_at_its_first_empty_line() -> None:
    request = b"GET /tunnel HTTP/1.1\r\nHost: x\r\n\r\n"
    reader = RequestReader()
    for start in range(len(request) - 1):
        assert reader.feed(request[start : start + 1]) is None
    assert reader.feed(request[-1:] + b"more") == (request, b"more")


def test_a_request_may_have_4_kib_and_no_more() -> None:
    end = b"\r\n\r\n"
    full = b"x" * (MAX_REQUEST - len(end)) + end
    assert RequestReader().feed(full + b"more") == (full, b"more")
    for too_large in (b"x" + full, b"x" * (MAX_REQUEST + 1)):
        with pytest.raises(HandshakeRejected, match="larger than 4096 bytes") as caught:
            RequestReader().feed(too_large)
        assert caught.value.cause is Cause.BAD_REQUEST
