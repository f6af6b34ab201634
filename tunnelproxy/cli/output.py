# SPDX-License-Identifier: Apache-2.0
"""Exits cleanly if a command's output is no longer read, or cannot be written."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from typing import Callable

__all__ = ["CLOSED_PIPE", "printing"]

CLOSED_PIPE = 128 + signal.SIGPIPE
"""The exit status that shells show for a program killed by a closed pipe."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def printing(command: Callable[[], int]) -> int:
    """Run a command that prints, and return its exit status.

    If the reader of its output has exited, as in ``tunnelproxy hub status | head -1``, the command exits silently, as
    other programs do. SIGPIPE itself stays ignored, because the other end of a socket may also disappear.
    """
    try:
        try:
            return command()
        finally:
            # Errors can be reported here, but no longer when the interpreter exits.
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
    """Discard the buffers that the interpreter would otherwise try to write when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
