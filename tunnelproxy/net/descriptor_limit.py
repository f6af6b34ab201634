# SPDX-License-Identifier: Apache-2.0
"""How many file descriptors a process may have."""

from __future__ import annotations

import contextlib
import resource

__all__ = ["allow_many_files", "is_reserved"]

_MOST_RESERVED = 4096
"""Descriptors kept for tunnels: 2,000 tunnels with a connection each. If few descriptors are allowed, half of them."""

_MOST_ON_MACOS = 10_240
"""macOS reports an infinite limit, and rejects more than this."""


def allow_many_files() -> int:
    """Raise this process's limit of open files, often 1024, as far as the system allows.

    Returns:
        how many descriptors the process may have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_ON_MACOS if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else _MOST_ON_MACOS


def is_reserved(descriptor: int) -> bool:
    """Whether so many descriptors are in use that the rest is reserved for the essential work of the process.

    Args:
        descriptor: the newest one. The kernel assigns the lowest free number, so it tells how many are in use.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and descriptor >= soft - min(soft // 2, _MOST_RESERVED)
