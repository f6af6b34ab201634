# SPDX-License-Identifier: GPL-3.0-or-later
"""A line between two network namespaces: rate, delay, jitter, queue and loss, for kernels without netem.

Each end is a TUN device, and a process moves the packets between them. Everything else is the kernel's own TCP, so
windows, slow start, congestion control and retransmissions are real.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from bisect import bisect_left
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

from .process import Process

__all__ = [
    "Direction",
    "Line",
    "LineEnds",
    "Profile",
    "Report",
    "available_congestion_controls",
    "set_congestion_control",
]

# The block for benchmarks (RFC 2544).
NETWORK = "198.18"
PREFIX = "iotops-"
SLOTS = 64
MTU = 1500

# Jitter drifts from one random value to the next, as on a radio link, and is the same for packets that are close
# together. If each packet had its own, a dense stream would see nothing but the largest, as none may overtake another.
_DRIFT_SECONDS = 0.02
_DRIFT_VALUES = 1024

# While there is traffic, packets are looked for after a pause, in seconds. At 200 Mbit/s, the process uses 14 % of a
# processor then, and 34 % without a pause; an echo takes 0.15 ms longer.
_PAUSE = 0.00025

# Of how late packets left: in steps of 0.1 ms, up to 200 ms.
_LATE_STEP = 0.0001
_LATE_STEPS = 2000

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Profile:
    """What a line is like.

    Attributes:
        round_trip: the least, in milliseconds: without what the queue and jitter add.
        down: megabits per second towards the near end.
        up: megabits per second towards the far end.
        queue: milliseconds for which packets may wait at the bottleneck; later ones are dropped.
        loss: percentage of packets that are dropped at random.
        jitter: milliseconds by which a packet may be later, each way; half of it on average. Packets do not overtake
            each other.
    """

    round_trip: float
    down: float
    up: float
    queue: float
    loss: float = 0.0
    jitter: float = 0.0


@dataclass(frozen=True)
class Report:
    """What a line did, and how accurately.

    Attributes:
        packets: how many it carried.
        dropped: how many it dropped, because of loss or of a full queue.
        processor_share: what the process that moves packets used of one processor, 0 to 1.
        late_p50: the seconds after their time at which packets left: half of them were no later.
        late_p99: the same for 99 in 100 of them.
    """

    packets: int
    dropped: int
    processor_share: float
    late_p50: float
    late_p99: float


class Direction:
    """One direction of a line: packets in, and out when they are due.

    Args:
        rate: bytes per second.
        delay: seconds.
        queue: seconds for which packets may wait.
        loss: share of packets that are lost, 0 to 1.
        jitter: seconds by which a packet may be later.
        seed: with the same, the same packets are lost.
    """

    def __init__(
        self, rate: float, delay: float, queue: float, loss: float = 0.0, jitter: float = 0.0, seed: int = 1
    ) -> None:
        self.dropped = 0
        self.carried = 0
        self._rate, self._delay, self._queue, self._loss = rate, delay, queue, loss
        self._free_at = 0.0
        self._packets: deque[tuple[float, bytes]] = deque()
        self._random = random.Random(seed)
        # It never falls faster than half of the time that passes, so packets stay in order.
        self._drift_seconds = max(_DRIFT_SECONDS, 2 * jitter)
        self._drift = [self._random.random() * jitter for _ in range(_DRIFT_VALUES)] if jitter else []
        self._late = [0] * (_LATE_STEPS + 1)

    def take(self, packet: bytes, now: float) -> None:
        """A packet enters, and is dropped if the queue is full."""
        begins = max(now, self._free_at)
        if begins - now > self._queue or (self._loss and self._random.random() < self._loss):
            self.dropped += 1
            return
        self._free_at = begins + len(packet) / self._rate
        due = self._free_at + self._delay
        if self._drift:
            place, part = divmod(self._free_at / self._drift_seconds, 1)
            earlier, later = (self._drift[(int(place) + number) % _DRIFT_VALUES] for number in (0, 1))
            due += earlier + (later - earlier) * part
        self._packets.append((due, packet))

    @property
    def due_at(self) -> float | None:
        """When the next packet leaves; None if there is none."""
        return self._packets[0][0] if self._packets else None

    def due(self, now: float) -> bytes | None:
        """Remove and return the next packet that leaves by now."""
        if not self._packets or self._packets[0][0] > now:
            return None
        due, packet = self._packets.popleft()
        self.carried += 1
        self._late[min(int((now - due) / _LATE_STEP), _LATE_STEPS)] += 1
        return packet

    def late(self, share: float) -> float:
        """The seconds after their time by which ``share`` (0 to 1) of all packets had left; at most 0.2."""
        return _late([self._late], share)

    @classmethod
    def report(cls, directions: list[Direction], processor_share: float) -> Report:
        """What a line of these directions did."""
        late = [direction._late for direction in directions]
        return Report(
            packets=sum(direction.carried for direction in directions),
            dropped=sum(direction.dropped for direction in directions),
            processor_share=processor_share,
            late_p50=_late(late, 0.5),
            late_p99=_late(late, 0.99),
        )


def _late(histograms: list[list[int]], share: float) -> float:
    totals = list(accumulate(map(sum, zip(*histograms))))
    if not totals[-1]:
        return 0.0
    return min(bisect_left(totals, totals[-1] * share) + 1, _LATE_STEPS) * _LATE_STEP


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
            slot, names = _claim()
            for name in names:
                stack.callback(_delete_namespace, name)
            near, far = (("ip", "netns", "exec", name) for name in names)
            ends = LineEnds(near, far, *(f"{NETWORK}.{slot}.{number}" for number in (1, 2)))
            code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from peers.line import main; main()"
            tests = str(Path(__file__).parents[1])
            profile = [f"{name}={value}" for name, value in asdict(self._profile).items()]
            command = [sys.executable, "-c", code, tests, str(os.getpid()), str(slot), *names, *profile]
            stack.enter_context(Process(command, self._log)).wait_for_output("ready")
            self._stack = stack.pop_all()
        return ends

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def report(self) -> Report:
        """What the line did. It is known when the line has ended."""
        return Report(**json.loads(self._log.read_text().splitlines()[-1]))


def available_congestion_controls() -> list[str]:
    """The congestion controls that the kernel has."""
    return Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()


def set_congestion_control(ends: LineEnds, name: str) -> None:
    """Choose the congestion control of new connections at both ends, such as ``bbr`` or ``cubic``.

    It is chosen by route, for all routes of both namespaces, also those within one. A namespace's sysctl takes only
    what ``tcp_allowed_congestion_control`` names, which holds for the whole machine.
    """
    for enter in (ends.near, ends.far):
        ip = ("ip", "-n", enter[-1], "-4")
        listed = subprocess.run([*ip, "route", "show", "table", "all"], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            words = line.split()
            if words[0] == "broadcast":
                continue
            if "congctl" in words:
                place = words.index("congctl")
                del words[place : place + 2]
            _run(*ip, "route", "change", *words, "congctl", name)


def main() -> None:
    """Run in the process that moves packets: make the devices, and move packets until stopped or the user has ended."""
    user, slot, near_name, far_name, *given = sys.argv[1:]
    signal.signal(signal.SIGTERM, _end)
    # If the user is killed, it cannot clean up.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    names = {name: _inode(name) for name in (near_name, far_name)}
    try:
        if os.getppid() == int(user):
            _run_line(slot, near_name, far_name, given)
    finally:
        if os.getppid() != int(user):
            for name, inode in names.items():
                _clear_namespace(name, inode)


def _run_line(slot: str, near_name: str, far_name: str, given: list[str]) -> None:
    profile = Profile(**{name: float(value) for name, _, value in (word.partition("=") for word in given)})
    near, far = (
        _make_end(name, f"{NETWORK}.{slot}.{number}", f"line{os.getpid()}{end}")
        for number, name, end in ((1, near_name, "n"), (2, far_name, "f"))
    )
    shared = profile.round_trip / 2000, profile.queue / 1000, profile.loss / 100, profile.jitter / 1000
    down, up = (Direction(rate * 1e6 / 8, *shared, seed) for seed, rate in enumerate((profile.down, profile.up)))
    # A collection would delay packets, and nothing here is a cycle.
    gc.disable()
    # A line has a processor of its own. At a load of 20 on two processors, 1 packet in 100 is 0.3 ms late. It was 5 to
    # 157 ms at a nice value of -10, at a load of 30.
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    print("ready", flush=True)
    began, used = time.monotonic(), time.process_time()
    try:
        _move({near: (up, far), far: (down, near)})
    finally:
        share = (time.process_time() - used) / (time.monotonic() - began)
        print(json.dumps(asdict(Direction.report([down, up], share))), flush=True)


def _end(*_: object) -> NoReturn:
    sys.exit()


def _move(ends: dict[int, tuple[Direction, int]]) -> NoReturn:
    """Move packets between two devices for ever."""
    directions = list(ends.values())
    looked_at = 0.0
    while True:
        time.sleep(max(0.0, looked_at + _PAUSE - time.monotonic()))
        times = [direction.due_at for direction, _ in directions if direction.due_at is not None]
        # Not epoll, which waits for whole milliseconds.
        wait = max(0.0, min(times) - time.monotonic()) if times else None
        readable = select.select(ends, (), (), wait)[0]
        looked_at = time.monotonic()
        for device in readable:
            _read(device, ends[device][0])
        for direction, output in directions:
            while (packet := direction.due(time.monotonic())) is not None:
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


def _claim() -> tuple[int, tuple[str, str]]:
    """Make two namespaces; return the number in their names, and the names."""
    for slot in range(SLOTS):
        near, far = f"{PREFIX}near{slot}", f"{PREFIX}far{slot}"
        if not _add_namespace(near):
            continue
        if _add_namespace(far):
            return slot, (near, far)
        _delete_namespace(near)
    raise RuntimeError(f"{SLOTS} lines have left their namespaces {PREFIX}near0 … here: ip netns delete NAME")


def _add_namespace(name: str) -> bool:
    """Whether the name was free."""
    try:
        _run("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        if b"File exists" not in error.stderr:
            raise
        return False
    return True


def _delete_namespace(name: str) -> None:
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _inode(name: str) -> int:
    """Which namespace has the name; 0 if none has."""
    try:
        return Path("/run/netns", name).stat().st_ino
    except FileNotFoundError:
        return 0


def _clear_namespace(name: str, inode: int) -> None:
    """Kill what runs in a namespace, and delete it, unless the name is now another's."""
    if inode == 0 or _inode(name) != inode:
        return
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _delete_namespace(name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
