# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands whose output is not read or cannot be written."""

from __future__ import annotations

import subprocess
import sys

import pytest

from peers.process import REPOSITORY

# printing() affects a whole process: its descriptors, and the interpreter's output when it exits.
COMMAND = """
import socket, sys
from tunnelproxy.cli.output import printing

def many_lines():
    for number in range(100_000):
        print(number)
    return 3

def few_lines():
    print("one line, which is still in the buffer when the command is done")
    return 3

def complains():
    print("tunnelproxy: error", file=sys.stderr, flush=True)
    return 3

def talks():
    near, far = socket.socketpair()
    far.close()
    near.sendall(b"x")

sys.exit(printing(globals()[sys.argv[1]]))
"""


def run(command: str, redirection: str, *, first: str = "") -> tuple[int, str]:
    """Run a command with a redirection of bash; return its exit status and stderr."""
    script = f'{first} exec "$0" -c "$1" "$2" {redirection}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, COMMAND, command],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["many_lines", "few_lines"])
def test_the_command_exits_silently_if_its_reader_has_exited(command: str) -> None:
    # The reader has exited before the command begins.
    gone = "exec 9> >(:); wait $!;"
    assert run(command, ">&9", first=gone) == (141, "")
    assert run("complains", "2>&9", first=gone) == (141, "")


def test_a_failed_write_is_reported() -> None:
    said = "tunnelproxy: error: cannot write the output: No space left on device\n"
    assert run("few_lines", "> /dev/full") == (1, said)


def test_the_command_works_without_standard_output() -> None:
    assert run("few_lines", ">&-") == (3, "")


def test_the_exit_status_is_that_of_the_command() -> None:
    assert run("few_lines", "> /dev/null") == (3, "")


def test_a_broken_socket_is_not_taken_for_the_output() -> None:
    status, said = run("talks", "> /dev/null")
    assert (status, said.splitlines()[-1]) == (1, "BrokenPipeError: [Errno 32] Broken pipe")
