# SPDX-License-Identifier: GPL-3.0-or-later
"""Windows of real sockets of the loopback. Only the round trip is the test's, where the peer is to be far away."""

from __future__ import annotations

import pathlib
import socket
import sys
from collections.abc import Iterator

import pytest

from tunnelproxy.net import receive_window
from tunnelproxy.net.receive_window import (
    FIRST_BUFFER,
    LARGEST_BUFFER,
    SMALLEST_WINDOW,
    ReceiveWindow,
    Shares,
)

if not sys.platform.startswith("linux"):
    pytest.skip("other systems have no such options", allow_module_level=True)

ROUND_TRIP = 0.1
FAST = 10_000_000
SLOW = 100_000
ENOUGH = int(FAST * 1.25 * ROUND_TRIP)
"""The window that a speed of FAST needs at the least."""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs:
            yield ours, theirs


class Path:
    """What the kernel tells of a path: the test's, for all sockets."""

    arrived = disordered = 0

    def measure(self, sock: socket.socket) -> tuple[int, float, int]:
        return self.arrived, ROUND_TRIP, self.disordered


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Path:
    path = Path()
    monkeypatch.setattr(receive_window, "measure", path.measure)
    return path


def clamp_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP)


def buffer_of(sock: socket.socket) -> int:
    # Linux returns twice what was asked for.
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def receive(path: Path, window: ReceiveWindow, clock: Clock, speed: int, seconds: float = 3.0) -> None:
    """Have data arrive steadily, as from a line."""
    for _ in range(int(seconds * 100)):
        clock.now += 0.01
        path.arrived += speed // 100
        window.took(speed // 100)


ONE_PACKET = 64 * 1024
"""What a packet on the loopback has, and a buffer at least."""


def test_the_receive_buffer_for_a_near_peer_follows_the_speed(
    ends: tuple[socket.socket, socket.socket], clock: Clock
) -> None:
    sock, _ = ends
    window = ReceiveWindow(sock, clock)
    assert not window.is_far
    assert buffer_of(sock) == FIRST_BUFFER
    grown = min(LARGEST_BUFFER, int(pathlib.Path("/proc/sys/net/core/rmem_max").read_text()))
    for bytes_per_second, expected in ((10**6, ONE_PACKET), (10**9, grown), (10**6, ONE_PACKET)):
        for _ in range(16):
            clock.now += 65536 / bytes_per_second
            window.took(65536)
        assert buffer_of(sock) == expected


def test_a_far_peer_gets_the_window_that_its_speed_needs_and_keeps_the_kernels_autotuning(
    ends: tuple[socket.socket, socket.socket], clock: Clock, path: Path
) -> None:
    sock, _ = ends
    untouched = buffer_of(sock)
    window = ReceiveWindow(sock, clock)
    assert window.is_far
    assert clamp_of(sock) == SMALLEST_WINDOW
    receive(path, window, clock, FAST)
    assert ENOUGH <= clamp_of(sock) <= ENOUGH * 1.3
    receive(path, window, clock, SLOW, seconds=600)
    assert clamp_of(sock) == SMALLEST_WINDOW
    assert buffer_of(sock) == untouched


def test_a_window_that_is_all_that_limits_the_speed_grows(
    ends: tuple[socket.socket, socket.socket], clock: Clock, path: Path
) -> None:
    window = ReceiveWindow(ends[0], clock)
    round_trips = 0
    while window.size < 10 * SMALLEST_WINDOW:
        # The usual round trip is a little longer than the shortest: a whole window arrives in that time.
        for _ in range(12):
            clock.now += ROUND_TRIP * 1.2 / 12
            path.arrived += window.size // 12 + 1
            window.took(window.size // 12 + 1)
        round_trips += 1
        assert round_trips < 12


def test_a_peer_that_sends_nothing_for_a_while_keeps_its_window(
    ends: tuple[socket.socket, socket.socket], clock: Clock, path: Path
) -> None:
    window = ReceiveWindow(ends[0], clock)
    receive(path, window, clock, FAST)
    size = window.size
    for _ in range(20):
        clock.now += 5
        path.arrived += size
        window.took(size)
    assert window.size == size


def test_what_lies_unread_is_part_of_the_window(
    ends: tuple[socket.socket, socket.socket], clock: Clock, path: Path
) -> None:
    sock, peer = ends
    window = ReceiveWindow(sock, clock)
    receive(path, window, clock, FAST)
    peer.sendall(bytes(20_000))
    sock.recv(20_000, socket.MSG_PEEK | socket.MSG_WAITALL)
    window.resumed()
    assert clamp_of(sock) == window.size - 20_000
    sock.recv(20_000)
    window.resumed()
    assert clamp_of(sock) == window.size


def test_a_line_that_loses_packets_gets_more(
    ends: tuple[socket.socket, socket.socket], clock: Clock, path: Path
) -> None:
    window = ReceiveWindow(ends[0], clock)
    receive(path, window, clock, FAST)
    size = window.size
    for _ in range(200):
        path.disordered += 1
        receive(path, window, clock, FAST, seconds=0.01)
    assert window.size > 1.4 * size


def test_a_peer_of_which_nothing_is_read_may_hardly_send_more(
    ends: tuple[socket.socket, socket.socket], clock: Clock, path: Path
) -> None:
    window = ReceiveWindow(ends[0], clock)
    receive(path, window, clock, FAST)
    window.stalled()
    assert clamp_of(ends[0]) <= 16 * 1024
    window.resumed()
    assert clamp_of(ends[0]) >= ENOUGH


def test_all_windows_of_a_process_have_a_limit_and_idle_ones_give_theirs_back(clock: Clock, path: Path) -> None:
    shares = Shares(4 * ENOUGH)
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        peers = [socket.create_connection(server.getsockname()) for _ in range(8)]
        windows = [ReceiveWindow(peer, clock, shares) for peer in peers]
        for _ in range(8):
            for window in windows:
                receive(path, window, clock, FAST, seconds=0.5)
        assert sum(window.size for window in windows) <= 4 * ENOUGH
        assert min(window.size for window in windows) >= ENOUGH / 2
        clock.now += 61
        receive(path, windows[0], clock, FAST)
        assert windows[0].size >= ENOUGH
        assert [clamp_of(peer) for peer in peers[1:]] == [SMALLEST_WINDOW] * 7
        for window, peer in zip(windows, peers):
            window.close()
            peer.close()


def test_there_may_be_no_tcp_socket(clock: Clock) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        before = buffer_of(sock)
        for window in (ReceiveWindow(sock, clock), ReceiveWindow(None, clock)):
            window.took(10**9)
            window.stalled()
            window.resumed()
            window.close()
            assert window.size == 0
        assert buffer_of(sock) == before
