# SPDX-License-Identifier: GPL-3.0-or-later
"""An access token is valid for one handshake, or for any number with the same client token."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.protocol.session import Mode
from tunnelproxy.service.data_plane.admission import Admissions
from tunnelproxy.service.data_plane.handshake import Cause, Handshake, HandshakeRejected
from tunnelproxy.service.model import NewTunnel, Tunnel, digest
from tunnelproxy.service.state.store import Store

NOW = 1_700_000_000.0
ME, SOMEONE_ELSE = "m" * 32, "s" * 32


class Handshakes:
    """A store with one tunnel, and handshakes that try to join it."""

    def __init__(self, folder: Path) -> None:
        self.now = NOW
        self.store = Store(folder / "service.db")
        self.admissions = Admissions(self.store, lambda: self.now)
        self.tunnel = self.open("source", "destination")

    def open(self, source: str, destination: str) -> Tunnel:
        digests = {Mode.SOURCE: digest(source), Mode.DESTINATION: digest(destination)}
        return self.store.open_tunnel(NewTunnel(services=("SSH1",), lifetime=60), digests, NOW)

    def join(self, token: str = "source", client_token: str | None = None, mode: Mode = Mode.SOURCE) -> Tunnel:
        admission = self.admissions.check(Handshake(mode, token, client_token))
        self.admissions.redeem(admission)
        return admission.tunnel

    def rejection(
        self, token: str = "source", client_token: str | None = None, mode: Mode = Mode.SOURCE
    ) -> HandshakeRejected:
        with pytest.raises(HandshakeRejected) as caught:
            self.join(token, client_token, mode)
        assert 400 <= caught.value.status < 500
        return caught.value


@pytest.fixture
def handshakes(tmp_path: Path) -> Handshakes:
    return Handshakes(tmp_path)


def test_a_token_opens_its_own_tunnel(handshakes: Handshakes) -> None:
    assert handshakes.join("source") == handshakes.tunnel
    assert handshakes.join("destination", mode=Mode.DESTINATION) == handshakes.tunnel


def test_a_token_without_client_token_is_for_one_handshake(handshakes: Handshakes) -> None:
    handshakes.join()
    rejection = handshakes.rejection()
    assert (rejection.cause, rejection.status) == (Cause.TOKEN_USED, 400)
    assert rejection.sentence == (
        "Invalid access token: The access token was previously used and can not be used again."
    )
    assert handshakes.rejection(client_token=ME).cause is Cause.TOKEN_USED


def test_the_same_client_token_opens_again_and_another_does_not(handshakes: Handshakes) -> None:
    handshakes.join(client_token=ME)
    handshakes.join(client_token=ME)
    assert handshakes.rejection(client_token=SOMEONE_ELSE).cause is Cause.TOKEN_USED
    assert handshakes.rejection().cause is Cause.TOKEN_USED
    handshakes.join(client_token=ME)


def test_a_handshake_that_fails_later_does_not_use_the_token(handshakes: Handshakes) -> None:
    handshakes.admissions.check(Handshake(Mode.SOURCE, "source", None))
    handshakes.join()


def test_an_unknown_token_is_rejected(handshakes: Handshakes) -> None:
    assert handshakes.rejection("other").cause is Cause.TOKEN_UNKNOWN


def test_the_source_s_token_does_not_open_the_destination(handshakes: Handshakes) -> None:
    rejection = handshakes.rejection("source", mode=Mode.DESTINATION)
    assert rejection.cause is Cause.WRONG_MODE
    assert "it is the source's" in rejection.sentence
    handshakes.join("source")


def test_a_rotated_token_is_rejected_and_the_new_one_opens(handshakes: Handshakes) -> None:
    handshakes.store.rotate_tokens(handshakes.tunnel, {Mode.SOURCE: digest("new")}, None, NOW)
    rejection = handshakes.rejection("source")
    assert rejection.cause is Cause.TOKEN_UNKNOWN
    assert "rotation" in rejection.sentence
    handshakes.join("new")


def test_a_closed_tunnel_is_rejected(handshakes: Handshakes) -> None:
    handshakes.store.close_tunnel(handshakes.tunnel.tunnel_id, NOW)
    assert handshakes.rejection().cause is Cause.TUNNEL_CLOSED


def test_an_expired_tunnel_is_rejected_even_before_it_is_swept(handshakes: Handshakes) -> None:
    handshakes.now = NOW + 3600
    assert handshakes.rejection().cause is Cause.TUNNEL_CLOSED


def test_a_client_token_is_for_one_open_tunnel(handshakes: Handshakes) -> None:
    other = handshakes.open("source2", "destination2")
    handshakes.join("source", ME)
    handshakes.join("destination", ME, Mode.DESTINATION)
    assert handshakes.rejection("source2", ME).cause is Cause.BAD_REQUEST
    handshakes.store.close_tunnel(handshakes.tunnel.tunnel_id, NOW)
    assert handshakes.join("source2", ME) == other
