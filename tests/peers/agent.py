# SPDX-License-Identifier: GPL-3.0-or-later
"""A device with an agent: a process that runs ``tunnelproxy agent run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .broker import Mosquitto
from .process import Process
from .service import TunnelingService

__all__ = ["AgentProcess", "write_agent_configuration"]


def write_agent_configuration(
    thing: str,
    folder: Path,
    broker: Mosquitto,
    service: TunnelingService,
    services: Mapping[str, int | str],
    more: str = "",
) -> Path:
    """Write an ``agent.yml``, and return the thing's folder."""
    there = folder / thing
    there.mkdir(parents=True)
    password = there / "password"
    password.touch(mode=0o600)
    password.write_text(broker.passwords.get(thing) or broker.add_user(thing))
    mapping = "".join(f"  {name}: {address}\n" for name, address in services.items())
    (there / "agent.yml").write_text(
        f"thing: {thing}\n"
        f"broker:\n  host: 127.0.0.1\n  port: {broker.port}\n  ca: {broker.ca}\n"
        f"  user: {thing}\n  password_file: password\n"
        f"services:\n{mapping}"
        f"endpoint: {service.data}\ncapath: {service.ca}\nstate_dir: state\n{more}"
    )
    return there


class AgentProcess:
    """An agent whose configuration is in a folder. Its state outlives :meth:`stop` and :meth:`start`.

    Args:
        enter: the start of a command line that runs the rest elsewhere, such as in a namespace.
    """

    def __init__(self, folder: Path, *, python: str = sys.executable, enter: Sequence[str] = ()) -> None:
        self.folder = folder
        self.log = folder / "agent.log"
        self._command = [
            *enter,
            python,
            "-m",
            "tunnelproxy",
            "agent",
            "run",
            "--config",
            folder / "agent.yml",
            "-v",
            "5",
        ]
        self.process: Process | None = None

    def __enter__(self) -> AgentProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, until: str = "waiting for notifications") -> Process:
        """Start the agent, and wait for these words in its log."""
        self.log.unlink(missing_ok=True)
        self.process = Process(self._command, self.log, os.environ)
        self.process.wait_for_output(until)
        return self.process

    def stop(self, *number: int) -> None:
        if self.process is not None:
            self.process.stop(*number)
            self.process = None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def count(self, words: str) -> int:
        """How many times the agent has logged these words."""
        return self.output().count(words)
