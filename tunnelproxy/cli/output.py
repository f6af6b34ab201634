# SPDX-License-Identifier: Apache-2.0
"""Ends a command whose output nobody reads any more, or cannot be written."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from typing import Callable

__all__ = ["CLOSED_PIPE", "printing"]

CLOSED_PIPE = 128 + signal.SIGPIPE
"""The exit status of a program that a closed pipe has ended, as shells show it."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def printing(command: Callable[[], int]) -> int:
    """Run a command that prints, and return its exit status.

    If the reader of its output has gone, as in ``tunnelproxy hub status | head -1``, it ends silently, as other
    programs do. SIGPIPE itself stays ignored, because the other end of a socket may go, too.
    """
    try:
        try:
            return command()
        finally:
            # Here errors can be reported; when the interpreter exits they cannot.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _has_no_reader(1) and not _has_no_reader(2):
            raise
        _print_no_more()
        return CLOSED_PIPE
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        _print_no_more()
        print(f"tunnelproxy: error: cannot write the output: {error.strerror}", file=sys.stderr, flush=True)
        return 1


def _has_no_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_no_more() -> None:
    """Empty the buffers that the interpreter would try to write when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
