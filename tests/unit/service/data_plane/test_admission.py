# SPDX-License-Identifier: GPL-3.0-or-later
"""Access tokens are for one handshake; with a client token, for its holder's every handshake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.service.data_plane.admission import Admissions
from tunnelproxy.service.data_plane.handshake import Cause, Handshake, HandshakeRejected
from tunnelproxy.service.model import Mode, NewTunnel, Tunnel, digest
from tunnelproxy.service.state.store import Store

NOW = 1_700_000_000.0
ME, SOMEONE_ELSE = "m" * 32, "s" * 32


class Listener:
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

    def refusal(
        self, token: str = "source", client_token: str | None = None, mode: Mode = Mode.SOURCE
    ) -> HandshakeRejected:
        with pytest.raises(HandshakeRejected) as caught:
            self.join(token, client_token, mode)
        assert 400 <= caught.value.status < 500
        return caught.value


@pytest.fixture
def door(tmp_path: Path) -> Listener:
    return Listener(tmp_path)


def test_a_token_opens_its_own_tunnel(door: Listener) -> None:
    assert door.join("source") == door.tunnel
    assert door.join("destination", mode=Mode.DESTINATION) == door.tunnel


def test_a_token_without_client_token_is_for_one_handshake(door: Listener) -> None:
    door.join()
    refusal = door.refusal()
    assert (refusal.cause, refusal.status) == (Cause.TOKEN_USED, 400)
    assert refusal.sentence == ("Invalid access token: The access token was previously used and can not be used again.")
    assert door.refusal(client_token=ME).cause is Cause.TOKEN_USED


def test_the_same_client_token_opens_again_and_another_does_not(door: Listener) -> None:
    door.join(client_token=ME)
    door.join(client_token=ME)
    assert door.refusal(client_token=SOMEONE_ELSE).cause is Cause.TOKEN_USED
    assert door.refusal().cause is Cause.TOKEN_USED
    door.join(client_token=ME)


def test_a_handshake_that_fails_later_does_not_use_the_token(door: Listener) -> None:
    door.admissions.check(Handshake(Mode.SOURCE, "source", None))
    door.join()


def test_an_unknown_token_is_refused(door: Listener) -> None:
    assert door.refusal("other").cause is Cause.TOKEN_UNKNOWN


def test_the_source_s_token_does_not_open_the_destination(door: Listener) -> None:
    refusal = door.refusal("source", mode=Mode.DESTINATION)
    assert refusal.cause is Cause.WRONG_MODE
    assert "it is the source's" in refusal.sentence
    door.join("source")


def test_a_rotated_token_is_refused_and_the_new_one_opens(door: Listener) -> None:
    door.store.rotate_tokens(door.tunnel, {Mode.SOURCE: digest("new")}, None, NOW)
    refusal = door.refusal("source")
    assert refusal.cause is Cause.TOKEN_UNKNOWN
    assert "rotation" in refusal.sentence
    door.join("new")


def test_a_closed_tunnel_is_refused(door: Listener) -> None:
    door.store.close_tunnel(door.tunnel.tunnel_id, NOW)
    assert door.refusal().cause is Cause.TUNNEL_CLOSED


def test_an_expired_tunnel_is_refused_even_before_it_is_swept(door: Listener) -> None:
    door.now = NOW + 3600
    assert door.refusal().cause is Cause.TUNNEL_CLOSED


def test_a_client_token_is_for_one_open_tunnel(door: Listener) -> None:
    other = door.open("source2", "destination2")
    door.join("source", ME)
    door.join("destination", ME, Mode.DESTINATION)
    assert door.refusal("source2", ME).cause is Cause.BAD_REQUEST
    door.store.close_tunnel(door.tunnel.tunnel_id, NOW)
    assert door.join("source2", ME) == other
