# SPDX-License-Identifier: Apache-2.0
"""The context of a task's log records: the tunnel that the task serves, and the thing at the far end.

Tasks and event loop callbacks inherit it from the task that starts them. Structured logs add it to each record.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

__all__ = ["about", "set_about"]

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))


def about() -> Mapping[str, str]:
    """The context of the current task."""
    return _about.get()


def set_about(**fields: str) -> None:
    """Add to the context of the current task and of all tasks that it starts later."""
    _about.set(MappingProxyType({**_about.get(), **fields}))
