# SPDX-License-Identifier: Apache-2.0
"""How many descriptors a process may have."""

from __future__ import annotations

import contextlib
import resource

__all__ = ["allow_many_files", "is_reserved"]

MOST_RESERVED = 4096
"""What others than local users need: 2,000 tunnels with a connection each. Where few are allowed, half of them."""

# macOS calls its limit infinite and refuses more than this.
_MOST_ON_MACOS = 10_240


def allow_many_files() -> int:
    """Let this process have as many connections as the system lets it: often 1024, unless one asks for more.

    Returns:
        how many descriptors it may have.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_ON_MACOS if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else _MOST_ON_MACOS


def is_reserved(descriptor: int) -> bool:
    """Whether so many descriptors are in use that the rest is for what a process cannot do its work without.

    Args:
        descriptor: the newest one: the kernel gives the lowest number that is free.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and descriptor >= soft - min(soft // 2, MOST_RESERVED)
