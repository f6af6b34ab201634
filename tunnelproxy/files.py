# SPDX-License-Identifier: Apache-2.0
"""Files that hold state or secrets: replaced atomically, readable by their owner only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["replace_file"]

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def replace_file(path: Path | str, content: bytes | Iterable[bytes], *, dir_fd: int | None = None) -> None:
    """Write a file of mode 0600 atomically: even after a crash, readers see either the old or the new content.

    Args:
        path: the file. ``.partial`` is appended to its name while it is written.
        content: the new content; parts are written one by one, so a large file need not be in memory as a whole.
        dir_fd: an open directory that a relative path starts from; None for the working directory.

    Raises:
        OSError: the file cannot be written; the old content is still there. ``filename`` is the path.
    """
    partial = f"{path}.partial"
    try:
        # A killed process may have left a partial file. Never write to it: it may be a link, or accessible to others.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=dir_fd)
        with os.fdopen(os.open(partial, _FLAGS, 0o600, dir_fd=dir_fd), "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        os.replace(partial, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=dir_fd)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
