# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clients are joined, and which ends the store has as connected."""

from __future__ import annotations

from pathlib import Path

import pytest
from websockets.frames import CloseCode

from tunnelproxy.protocol.framing import Bytes
from tunnelproxy.protocol.session import Mode, Version
from tunnelproxy.service.data_plane.connected_clients import Client
from tunnelproxy.service.data_plane.relays import REPLACED, Relays
from tunnelproxy.service.model import NewTunnel, Tunnel, digest
from tunnelproxy.service.state.store import Store


class End:
    def __init__(self, tunnel: Tunnel, mode: Mode) -> None:
        self.client = Client("c-1", None, tunnel, None, mode, Version.V3)
        self.disconnected: tuple[int, str] | None = None

    def send(self, *messages: Bytes) -> None:

        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def disconnect(self, code: int, reason: str) -> None:
        self.disconnected = (code, reason)


class Tunnels:
    """A store with tunnels, and the relays of those."""

    def __init__(self, folder: Path, bandwidth: int = 0) -> None:
        self.store = Store(folder / "service.db")
        self.relays = Relays(self.store, bandwidth, lambda: 1_700_000_000.0)
        self.one, self.other = (self._open(number) for number in range(2))

    def connected(self, tunnel: Tunnel) -> set[Mode]:
        return {mode for mode, state in self.store.end_states(tunnel.tunnel_id).items() if state.connected}

    def _open(self, number: int) -> Tunnel:
        digests = {mode: digest(f"{mode.value}{number}") for mode in Mode}
        return self.store.open_tunnel(NewTunnel(services=("SSH1",), lifetime=60), digests, 1_700_000_000.0)


@pytest.fixture
def tunnels(tmp_path: Path) -> Tunnels:
    return Tunnels(tmp_path)


def test_the_ends_of_one_tunnel_have_one_relay(tunnels: Tunnels) -> None:
    source, destination = End(tunnels.one, Mode.SOURCE), End(tunnels.one, Mode.DESTINATION)
    relay = tunnels.relays.attach(source)
    assert tunnels.relays.attach(destination) is relay
    assert tunnels.relays.attach(End(tunnels.other, Mode.SOURCE)) is not relay
    assert (relay.end(Mode.SOURCE), relay.end(Mode.DESTINATION)) == (source, destination)


def test_the_store_knows_which_ends_are_connected(tunnels: Tunnels) -> None:
    source, destination = End(tunnels.one, Mode.SOURCE), End(tunnels.one, Mode.DESTINATION)
    tunnels.relays.attach(source)
    tunnels.relays.attach(destination)
    assert tunnels.connected(tunnels.one) == set(Mode)
    assert tunnels.connected(tunnels.other) == set()
    tunnels.relays.detach(source)
    assert tunnels.connected(tunnels.one) == {Mode.DESTINATION}


def test_a_newer_connection_of_an_end_replaces_the_older_one(tunnels: Tunnels) -> None:
    older, newer = End(tunnels.one, Mode.SOURCE), End(tunnels.one, Mode.SOURCE)
    tunnels.relays.attach(older)
    tunnels.relays.attach(newer)
    assert older.disconnected == (CloseCode.POLICY_VIOLATION, REPLACED)
    tunnels.relays.detach(older)
    assert tunnels.connected(tunnels.one) == {Mode.SOURCE}


def test_a_tunnel_without_clients_has_no_relay(tunnels: Tunnels) -> None:
    source = End(tunnels.one, Mode.SOURCE)
    relay = tunnels.relays.attach(source)
    tunnels.relays.detach(source)
    assert tunnels.relays.attach(End(tunnels.one, Mode.SOURCE)) is not relay


def test_the_named_end_is_disconnected(tunnels: Tunnels) -> None:
    source, destination = End(tunnels.one, Mode.SOURCE), End(tunnels.one, Mode.DESTINATION)
    tunnels.relays.attach(source)
    tunnels.relays.attach(destination)
    tunnels.relays.disconnect(tunnels.one.tunnel_id, Mode.SOURCE, CloseCode.NORMAL_CLOSURE, "bye")
    assert (source.disconnected, destination.disconnected) == ((1000, "bye"), None)


def test_an_end_that_is_not_connected_is_not_disconnected(tunnels: Tunnels) -> None:
    tunnels.relays.disconnect(tunnels.one.tunnel_id, Mode.SOURCE, CloseCode.NORMAL_CLOSURE, "bye")
    tunnels.relays.attach(End(tunnels.one, Mode.DESTINATION))
    tunnels.relays.disconnect(tunnels.one.tunnel_id, Mode.SOURCE, CloseCode.NORMAL_CLOSURE, "bye")


@pytest.mark.parametrize("bandwidth", [0, 1_000_000])
def test_each_tunnel_has_its_own_bandwidth(tmp_path: Path, bandwidth: int) -> None:
    tunnels = Tunnels(tmp_path, bandwidth)
    limits = [tunnels.relays.attach(End(tunnel, Mode.SOURCE)).bandwidth for tunnel in (tunnels.one, tunnels.other)]
    if bandwidth:
        assert limits[0] is not None
        assert limits[0] is not limits[1]
    else:
        assert limits == [None, None]
