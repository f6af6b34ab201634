# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers that run as processes, with their output in a file; and waiting for conditions, with a deadline."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["REPOSITORY", "Process", "free_port", "stopped", "wait_for"]

REPOSITORY = Path(__file__).resolve().parents[2]

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """Return the value of ``condition`` as soon as it is true; fail with ``what`` after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


_claims: list[socket.socket] = []


def free_port() -> int:
    """A loopback port that nothing listens on, and that no other test process gets while this process runs.

    It is below those that the kernel picks for connections (32768 and higher), which might take it before its server
    does. It is reserved by the name of a Unix socket, which no other process can then have.
    """
    for port in random.sample(range(20_000, 30_000), 1000):
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            try:
                claim.bind(f"\0iotops-test-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
        _claims.append(claim)
        return port
    raise RuntimeError("none of a thousand ports from 20000 to 29999 is free")


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes (SIGSTOP): the kernel still acknowledges data for them, but they do not answer."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Process:
    """A child process. Use it as a context manager, which stops it at the end and waits for it."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        with log.open("ab") as output:
            self.popen: subprocess.Popen[Any] = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(os.environ if environment is None else environment),
                cwd=REPOSITORY,
                start_new_session=True,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_output(self, pattern: str, seconds: float = 30.0) -> re.Match[str]:
        """Wait until the output matches a regular expression, and return the match; fail if the process exits first."""

        def look() -> re.Match[str] | None:
            ended = self.popen.poll() is not None
            match = re.search(pattern, self.output())
            if match is None and ended:
                raise AssertionError(f"{self.command} exited with {self.popen.returncode}: {self.output()[-2000:]}")
            return match

        return wait_for(look, f"{pattern!r} in the output of {self.command}", seconds)

    def wait(self, seconds: float = 30.0) -> int:
        """Wait until the process exits, and return its exit status."""
        return self.popen.wait(seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status; kill the process if it has not exited ten seconds later."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.popen.pid, signal.SIGKILL)
            return self.popen.wait()
