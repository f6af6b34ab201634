# SPDX-License-Identifier: Apache-2.0
"""What the records of a task are about: the tunnel it serves, and the thing at the far end.

A task hands this on to what it starts, callbacks of the event loop included; structured logs show it with each record.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

__all__ = ["about", "set_about"]

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))


def about() -> Mapping[str, str]:
    """What the current task is about."""
    return _about.get()


def set_about(**fields: str) -> None:
    """Say what the current task, and what it starts from now on, is about."""
    _about.set(MappingProxyType({**_about.get(), **fields}))
