# SPDX-License-Identifier: GPL-3.0-or-later
"""A line between two network namespaces: rate, delay, jitter, queue and loss, for kernels without netem.

Each end is a TUN device, and a process moves the packets between them. Everything else is the kernel's own TCP, so
windows, slow start, congestion control and retransmissions are real.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from .process import Process

__all__ = ["Direction", "Line", "LineEnds", "Profile", "set_congestion_control"]

# The block for benchmarks (RFC 2544).
NETWORK = "198.18"
SLOTS = 64
MTU = 1500

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


@dataclass(frozen=True)
class Profile:
    """What a line is like.

    Attributes:
        round_trip: milliseconds, without what the queue adds.
        down: megabits per second towards the near end.
        up: megabits per second towards the far end.
        queue: milliseconds for which packets may wait at the bottleneck; later ones are dropped.
        loss: percentage of packets that are dropped at random.
        jitter: milliseconds by which a packet may be later, each way. Packets do not overtake each other.
    """

    round_trip: float
    down: float
    up: float
    queue: float
    loss: float = 0.0
    jitter: float = 0.0


class Direction:
    """One direction of a line: packets in, and out when they are due.

    Args:
        rate: bytes per second.
        delay: seconds.
        queue: seconds for which packets may wait.
        loss: share of packets that are lost, 0 to 1.
        jitter: seconds by which a packet may be later.
    """

    def __init__(self, rate: float, delay: float, queue: float, loss: float = 0.0, jitter: float = 0.0) -> None:
        self.dropped = 0
        self._rate, self._delay, self._queue, self._loss, self._jitter = rate, delay, queue, loss, jitter
        self._free_at = 0.0
        self._latest = 0.0
        self._packets: deque[tuple[float, bytes]] = deque()
        self._random = random.Random(1)

    def take(self, packet: bytes, now: float) -> None:
        """A packet enters, and is dropped if the queue is full."""
        begins = max(now, self._free_at)
        if begins - now > self._queue or (self._loss and self._random.random() < self._loss):
            self.dropped += 1
            return
        self._free_at = begins + len(packet) / self._rate
        due = self._free_at + self._delay + (self._random.random() * self._jitter if self._jitter else 0.0)
        self._latest = max(due, self._latest)
        self._packets.append((self._latest, packet))

    @property
    def due_at(self) -> float | None:
        """When the next packet leaves; None if there is none."""
        return self._packets[0][0] if self._packets else None

    def due(self, now: float) -> bytes | None:
        """Remove and return the next packet that leaves by now."""
        return self._packets.popleft()[1] if self._packets and self._packets[0][0] <= now else None


@dataclass(frozen=True)
class LineEnds:
    """The two ends of a line.

    Attributes:
        near: the command that runs another in the near namespace.
        far: the command that runs another in the far namespace.
        near_address: the near end's address.
        far_address: the far end's address.
    """

    near: tuple[str, ...]
    far: tuple[str, ...]
    near_address: str
    far_address: str


class Line:
    """A line between two namespaces. Use it as a context manager, which yields its ends."""

    def __init__(self, profile: Profile, log: Path) -> None:
        self._profile = profile
        self._log = log
        self._stack = ExitStack()

    def __enter__(self) -> LineEnds:
        with self._stack as stack:
            slot = next(number for number in range(SLOTS) if _add_namespace(f"iotops-near{number}"))
            names = f"iotops-near{slot}", f"iotops-far{slot}"
            stack.callback(_delete_namespace, names[0])
            if not _add_namespace(names[1]):
                raise RuntimeError(f"the namespace {names[1]} is left over: ip netns delete {names[1]}")
            stack.callback(_delete_namespace, names[1])
            near, far = (("ip", "netns", "exec", name) for name in names)
            ends = LineEnds(near, far, *(f"{NETWORK}.{slot}.{number}" for number in (1, 2)))
            code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from peers.line import main; main()"
            tests = str(Path(__file__).parents[1])
            profile = [f"{name}={value}" for name, value in asdict(self._profile).items()]
            command = [sys.executable, "-c", code, tests, str(slot), *names, *profile]
            stack.enter_context(Process(command, self._log)).wait_for_output("ready")
            self._stack = stack.pop_all()
        return ends

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def set_congestion_control(ends: LineEnds, name: str) -> None:
    """Choose the congestion control of new connections at both ends, such as ``bbr`` or ``cubic``.

    In a namespace, only those can be chosen that the machine allows to all users: it is added to them.
    """
    allowed = _ALLOWED.read_text().split()
    if name not in allowed:
        _ALLOWED.write_text(" ".join([*allowed, name]))
    for enter in (ends.near, ends.far):
        _run(*enter, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={name}")


def main() -> None:
    """Run in the process that moves packets: make the devices, and move packets until killed."""
    slot, near_name, far_name, *given = sys.argv[1:]
    profile = Profile(**{name: float(value) for name, _, value in (word.partition("=") for word in given)})
    near, far = (
        _make_end(name, f"{NETWORK}.{slot}.{number}", f"line{slot}{end}")
        for number, name, end in ((1, near_name, "near"), (2, far_name, "far"))
    )
    shared = profile.round_trip / 2000, profile.queue / 1000, profile.loss / 100, profile.jitter / 1000
    down, up = (Direction(rate * 1e6 / 8, *shared) for rate in (profile.down, profile.up))
    # A collection would delay packets, and nothing here is a cycle.
    gc.disable()
    with suppress(PermissionError):
        os.nice(-10)
    print("ready", flush=True)
    _move({near: (up, far), far: (down, near)})


def _move(ends: dict[int, tuple[Direction, int]]) -> None:
    """Move packets between two devices for ever."""
    directions = list(ends.values())
    while True:
        times = [direction.due_at for direction, _ in directions if direction.due_at is not None]
        # Not epoll, which waits for whole milliseconds.
        wait = max(0.0, min(times) - time.monotonic()) if times else None
        for device in select.select(ends, (), (), wait)[0]:
            _read(device, ends[device][0])
        now = time.monotonic()
        for direction, output in directions:
            while (packet := direction.due(now)) is not None:
                _write(output, packet)


def _read(device: int, direction: Direction) -> None:
    for _ in range(64):
        try:
            packet = os.read(device, 2 * MTU)
        except BlockingIOError:
            return
        direction.take(packet, time.monotonic())


def _write(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except OSError as error:
        # As on a line, where nobody learns that the other end could not take a packet.
        if error.errno not in (errno.EAGAIN, errno.EIO, errno.EINVAL):
            raise


def _make_end(namespace: str, address: str, device: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TUN | _IFF_NO_PI))
    _run("ip", "link", "set", device, "netns", namespace)
    _run("ip", "-n", namespace, "link", "set", "lo", "up")
    _run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device)
    _run("ip", "-n", namespace, "link", "set", device, "mtu", str(MTU), "txqueuelen", "1000", "up")
    return descriptor


def _add_namespace(name: str) -> bool:
    return subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0


def _delete_namespace(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
