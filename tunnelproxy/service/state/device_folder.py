# SPDX-License-Identifier: Apache-2.0
"""The directory that ``service add-thing`` writes for a device, which contains a password."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ...files import replace_file
from ..errors import ServiceError
from .directory import user_name

__all__ = ["DeviceFolder"]


class DeviceFolder:
    """An open directory that only this user can change. Later changes at its path have no effect.

    Args:
        path: its path, for messages.
        fd: its open descriptor.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[DeviceFolder]:
        """Open the directory; if it is missing, create it with mode 0700.

        Raises:
            ServiceError: it cannot be created, is a link, or other users could read or change the files in it.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
                raise ServiceError(
                    f"{path} is a symbolic link, and will contain a password; give --output the directory itself"
                ) from error
            raise _cannot_write(path, error) from error
        try:
            _refuse_one_of_others(path, os.fstat(fd))
            yield cls(path, fd)
        except OSError as error:
            if os.path.isabs(error.filename or ""):
                # The error is about the state directory: the files written here have relative names.
                raise
            raise _cannot_write(path, error) from error
        finally:
            os.close(fd)

    def has(self, name: str) -> bool:
        """Whether there is a file with this name."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write a file of mode 0600, replacing an existing one."""
        replace_file(name, content, dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)


def _refuse_one_of_others(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise ServiceError(
            f"the directory {path} belongs to {user_name(status.st_uid)}, who could read the password that will be "
            "written there; give --output one of your own, or one that does not exist yet"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ServiceError(
            f"others may write to the directory {path}, and so could read the password that will be written there; "
            f"remove that permission (chmod go-w {path}), or give --output another one"
        )


def _cannot_write(path: Path, error: OSError) -> ServiceError:
    return ServiceError(f"cannot write to {path}: {error.strerror}; give --output another directory")
