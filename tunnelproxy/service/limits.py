# SPDX-License-Identifier: Apache-2.0
"""How much of the service its clients may use, and at what rate."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DEFAULT_LIMITS", "Limits", "TokenBucket", "client_network"]

_BURST_SECONDS = 0.25


@dataclass(frozen=True)
class Limits:
    """The limits of a service; 0 means no limit.

    Attributes:
        tunnels: open tunnels.
        services: services per tunnel. AWS's default quota is three.
        bandwidth: bytes per second and tunnel, both directions together. AWS limits a tunnel to 800 KB/s.
        connections_per_address: TCP connections per port from one address, as :func:`client_network` counts it.
        half_open: connections per port whose handshake is not complete.
        handshake_seconds: how long a handshake may take, including TLS.
    """

    tunnels: int = 10_000
    services: int = 3
    bandwidth: int = 0
    connections_per_address: int = 5_000
    half_open: int = 256
    handshake_seconds: float = 10.0


DEFAULT_LIMITS = Limits()


def client_network(address: str) -> str:
    """The network that counts as one client: an IPv4 address, or for IPv6 the /64, since a client can have all of it.

    Source: RFC 4291, section 2.5.1.
    """
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped
    return str(mapped or ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


class TokenBucket:
    """A token bucket: allows a burst, then a steady rate.

    :meth:`try_take` is for events that can be rejected. :meth:`take` is for bytes that have already arrived: it may
    leave the bucket in debt, and the caller waits until the debt is paid.

    Args:
        rate: tokens per second.
        burst: the size of the bucket, which starts full.
        clock: returns seconds, monotonic.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    @classmethod
    def for_bandwidth(cls, bytes_per_second: float, clock: Callable[[], float]) -> TokenBucket:
        """A bucket of bytes, with a burst of a quarter of a second."""
        return cls(bytes_per_second, bytes_per_second * _BURST_SECONDS, clock)

    def take(self, tokens: float) -> float:
        """Take tokens, even if there are too few; return how many seconds to wait before taking more."""
        self._refill()
        self._tokens -= tokens
        return max(0.0, -self._tokens / self._rate)

    def has_token(self) -> bool:
        """Whether there is a token to take."""
        self._refill()
        return self._tokens >= 1

    def try_take(self) -> bool:
        """Take a token if there is one; return whether there was."""
        if not self.has_token():
            return False
        self._tokens -= 1
        return True

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
