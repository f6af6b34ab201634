# SPDX-License-Identifier: Apache-2.0
"""How much of the service its clients may use, and how fast."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DEFAULT_LIMITS", "Limits", "Pace", "TokenBucket", "counted_address"]

_BURST_SECONDS = 0.25


@dataclass(frozen=True)
class Limits:
    """The limits of one service; 0 means none.

    Attributes:
        tunnels: open at once.
        services: per tunnel; AWS's default quota is three.
        bandwidth: bytes per second and tunnel, both ways together; AWS holds a tunnel to 800 KB/s.
        connections_per_address: TCP connections of one address (:func:`counted_address`) to one port at once.
        half_open: connections to one port at once whose handshake is not done.
        handshake_seconds: how long a handshake may take, TLS included.
    """

    tunnels: int = 10_000
    services: int = 3
    bandwidth: int = 0
    connections_per_address: int = 5_000
    half_open: int = 256
    handshake_seconds: float = 10.0


DEFAULT_LIMITS = Limits()


def counted_address(address: str) -> str:
    """What an address is counted as: itself, or, for IPv6, its network of 64 bits, all of which one client can have.

    Source: RFC 4291, section 2.5.1.
    """
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped
    return str(mapped or ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


class Pace:
    """How fast a tunnel may go: a token bucket that may run into debt, which is then waited off.

    Args:
        rate: bytes per second.
        clock: gives seconds, and never goes back.
    """

    def __init__(self, rate: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._credit = self._most = rate * _BURST_SECONDS
        self._as_of = clock()

    def take(self, size: int) -> float:
        """Note that ``size`` bytes have passed, and return for how many seconds none should follow."""
        now = self._clock()
        self._credit = min(self._most, self._credit + (now - self._as_of) * self._rate) - size
        self._as_of = now
        return max(0.0, -self._credit / self._rate)


class TokenBucket:
    """How often something may be done: a burst at once, and then at a steady rate.

    Args:
        rate: times per second.
        burst: how often at once, after a while of nothing.
        clock: gives seconds, and never goes back.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._as_of = clock()

    def has_one(self) -> bool:
        """Whether it may be done now."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._as_of) * self._rate)
        self._as_of = now
        return self._tokens >= 1

    def take(self) -> bool:
        """Whether it may be done now; it counts as done then."""
        if not self.has_one():
            return False
        self._tokens -= 1
        return True
