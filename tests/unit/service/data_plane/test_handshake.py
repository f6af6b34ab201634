# SPDX-License-Identifier: GPL-3.0-or-later
"""What a handshake request must and must not say."""

from __future__ import annotations

import pytest
from websockets.datastructures import Headers

from tunnelproxy.service.data_plane.handshake import Cause, HandshakeRejected, read_handshake
from tunnelproxy.service.model import Mode

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
