# SPDX-License-Identifier: Apache-2.0
"""Find problems that would prevent an agent from working, without running one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..net.mqtt import try_once
from . import tunnels  # noqa: F401  an agent imports it: a library that is too old is reported here
from .config import AgentConfig, examine
from .notification import notify_topic
from .state_file import why_unwritable

__all__ = ["find_faults", "try_broker"]


def find_faults(path: Path, environment: Mapping[str, str]) -> tuple[AgentConfig | None, list[str]]:
    """Read a configuration file, and check whether this user can run an agent with it.

    Returns:
        the configuration, or None if no agent can start with it; and the problems.
    """
    config, faults = examine(path, environment)
    if config is None:
        return None, faults
    return config, [*config.exposed, *_state_faults(config.state_dir)]


async def try_broker(config: AgentConfig) -> str | None:
    """Connect to the broker and subscribe, once; a running agent of this thing is briefly disconnected.

    Returns:
        the error; None if the broker granted the subscription.
    """
    cause = await try_once(config.broker, notify_topic(config.thing))
    return None if cause is None else f"the MQTT broker {config.broker}: {cause}"


def _state_faults(directory: Path | None) -> list[str]:
    """Like ``SavedTunnels.prepare``, but creates nothing."""
    if directory is None:
        return []
    try:
        there = next(folder for folder in (directory, *directory.parents) if folder.exists())
        why = why_unwritable(there)
    except OSError as error:
        why = f"cannot access {error.filename or directory}: {error.strerror}"
    return [] if why is None else [f"state_dir: {why}"]
