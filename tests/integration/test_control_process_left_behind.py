# SPDX-License-Identifier: GPL-3.0-or-later
"""A control process that leaves a child behind, such as a password agent, which keeps its standard error open."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.hub import control_process
from tunnelproxy.hub.control_process import _Process
from tunnelproxy.hub.location import HubError
from tunnelproxy.hub.wire import Caller

SECONDS = 5.0


@asynccontextmanager
async def left_behind(folder: Path, then: str) -> AsyncIterator[_Process]:
    """A replacement for the Python: starts a program in another session, and then runs a command."""
    python, pid = folder / "python", folder / "pid"
    left = f"echo $$ > {pid}; exec sleep 1000"
    python.write_text(f"#!/bin/sh\nsetsid sh -c '{left}' < /dev/null > /dev/null &\n{then}\n")
    python.chmod(0o755)
    process = await _Process.start(Caller({"PATH": os.environ["PATH"]}, "/", python=str(python)))
    await until(lambda: pid.exists() and pid.read_text())
    try:
        yield process
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
        # Before the event loop is closed, which the transport needs for this.
        transport: Any = process._process._transport  # type: ignore[attr-defined]
        transport.close()
        await until(lambda: transport._proc is None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_process, "ENDING_SECONDS", 0.1)


@in_event_loop
async def test_it_is_stopped_nevertheless(tmp_path: Path) -> None:
    async with left_behind(tmp_path, "exec cat > /dev/null") as process:
        await asyncio.wait_for(process.stop(), SECONDS)
        assert not process.alive


@in_event_loop
async def test_callers_learn_that_the_process_has_exited(tmp_path: Path) -> None:
    async with left_behind(tmp_path, "read request") as process:
        with pytest.raises(HubError, match="the control process exited before it answered"):
            await asyncio.wait_for(process.ask("identify", {}), SECONDS)
