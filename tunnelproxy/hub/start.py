# SPDX-License-Identifier: Apache-2.0
"""Starts the hub on demand. :mod:`.wire` imports this only if no hub listens."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping

from .location import DIRECTORY_VARIABLE, LOCK_NAME, HubError, cannot_write, chosen_directory, directory, log_path

__all__ = ["lock_holder", "start", "take_start_lock"]

START_LOCK_NAME = "start.lock"

START_SECONDS = 20.0

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_HUB_VARIABLES = (
    DIRECTORY_VARIABLE,
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "TMPDIR",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
)
_HUB_PREFIXES = ("LC_", "PYTHON", "XDG_")


def take_start_lock() -> int:
    """Acquire the lock for starting a hub, so that only one process does; closing the descriptor releases it.

    Raises:
        HubError: the lock's file cannot be written.
    """
    path = os.path.join(directory(), START_LOCK_NAME)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise HubError(cannot_write(path, error)) from None
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def start() -> None:
    """Start the hub, and wait until it is ready.

    Raises:
        HubError: it cannot be started; the text quotes its last error message.
    """
    # The hub forks into its own session, so that no signal to Ansible's process groups reaches it. It closes its
    # standard output when it is ready or has failed.
    try:
        done = subprocess.run(  # noqa: S603  our own command
            [sys.executable, _PACKAGE, "hub", "run", "--background"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_SECONDS,
            check=False,
            cwd="/",
            env=_hub_environment(os.environ),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HubError(f"cannot start the hub: {error}") from None
    said = done.stdout.decode(errors="replace").strip().splitlines()
    if said[-1:] != ["ready"]:
        last = said[-1].removeprefix("tunnelproxy: error: ") if said else "it said nothing"
        raise HubError(f"cannot start the hub: {last}; see {log_path()}")


def lock_holder() -> str | None:
    """The process ID of the running hub, for messages; None if there is none."""
    try:
        lock = os.open(os.path.join(directory(), LOCK_NAME), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # The file is empty if the disk was full.
        return os.read(lock, 20).decode(errors="replace").strip() or "PROCESS"
    else:
        return None
    finally:
        os.close(lock)


def _hub_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The hub's environment. What belongs to one caller, such as AWS keys, is sent with each request instead."""
    kept = {
        name: value for name, value in environment.items() if name in _HUB_VARIABLES or name.startswith(_HUB_PREFIXES)
    }
    chosen = chosen_directory()  # absolute: the hub's working directory is different
    return {**kept, DIRECTORY_VARIABLE: chosen} if chosen else kept
