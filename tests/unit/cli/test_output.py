# SPDX-License-Identifier: GPL-3.0-or-later
"""Output that nobody reads, or that cannot be written; the integration tests show how a whole process ends."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tunnelproxy.cli.output import CLOSED_PIPE, printing


@contextmanager
def standard_output(descriptor: int) -> Iterator[None]:
    """Let a descriptor be standard output, as a shell does, for this process and for Python."""
    saved, before = os.dup(1), sys.stdout
    os.dup2(descriptor, 1)
    sys.stdout = os.fdopen(os.dup(1), "w")
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        # Its buffer is empty, or has nowhere to go.
        os.dup2(1, sys.stdout.fileno())
        sys.stdout.close()
        sys.stdout = before


@pytest.fixture
def without_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def say() -> int:
    print("a line")
    return 3


def test_the_status_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert printing(say) == 3
    assert capsys.readouterr().out == "a line\n"


def test_a_reader_that_has_gone_ends_the_command_without_a_word(
    without_reader: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with standard_output(without_reader):
        assert printing(say) == CLOSED_PIPE
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with standard_output(full):
        assert printing(say) == 1
    os.close(full)
    assert capsys.readouterr().err == "tunnelproxy: error: cannot write the output: No space left on device\n"


def test_another_connection_that_breaks_is_not_the_reader() -> None:
    def talk() -> int:
        near, far = socket.socketpair()
        far.close()
        with near:
            near.sendall(b"x")
        return 0

    with pytest.raises(BrokenPipeError):
        printing(talk)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space", "/a/file")])
def test_other_errors_are_not_of_the_output(error: OSError) -> None:
    def fail() -> int:
        raise error

    with pytest.raises(OSError, match=error.strerror):
        printing(fail)


def test_without_standard_output_a_command_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert printing(lambda: 3) == 3
