# SPDX-License-Identifier: Apache-2.0
"""The location of the hub: the folder with its socket and lock, which callers and the hub look up in the same way.

The folder is the environment's ``IOTOPS_TUNNEL_DIR``; without it, ``iotops-tunnel`` in the user's runtime directory
(``XDG_RUNTIME_DIR``, or ``/run/user/UID``), or ``/tmp/iotops-tunnel-UID`` if there is none. All runs of one user on one
machine must agree on it, so an existing folder is preferred.

ssh starts a Python that imports this module for each connection, so it imports only what Python has loaded anyway.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

__all__ = [
    "DIRECTORY_VARIABLE",
    "LOCK_NAME",
    "PROTOCOL",
    "SOCKET_NAME",
    "HubError",
    "cannot_write",
    "chosen_directory",
    "describe_os_error",
    "directory",
    "log_path",
]

DIRECTORY_VARIABLE = "IOTOPS_TUNNEL_DIR"
SOCKET_NAME = "hub.sock"
LOCK_NAME = "hub.lock"
"""The process that holds the lock on this file is the hub; the file contains its process ID."""

PROTOCOL = 2
"""Version of requests and replies. A hub of another version may hold tunnels whose account it does not know."""

_DEFAULTS = ("/run/user/{user}", "/tmp/iotops-tunnel-{user}")  # noqa: S108  directory() checks it
"""The runtime directory of a process without ``XDG_RUNTIME_DIR``, and the hub's folder if that does not exist."""

_LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes. unix(7): the address has 108, including the terminating null byte."""

_REMEDIES = {
    errno.ENOSPC: "free some space there, or set {variable} to another folder",
    errno.EDQUOT: "free some space there, or set {variable} to another folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
}
_OTHER_REMEDY = "make it writable for you, or set {variable} to another folder"


class HubError(Exception):
    """Something could not be done; the text is a sentence for the operator.

    Attributes:
        code: one word for programs, such as ``no-tunnel``, ``device-not-connected`` or ``token-used``.
    """

    def __init__(self, message: str, *, code: str = "hub-failed") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def directory() -> str:
    """The hub's folder, which only this user may enter. It is created if it does not exist.

    Raises:
        HubError: it cannot be created, belongs to another user, is open to others, or its path is too long.
    """
    path = chosen_directory() or _default_directory()
    if not _fits(path):
        raise HubError(
            f"the path of the hub's folder is too long for a Unix socket in it: {path}: set {DIRECTORY_VARIABLE} to "
            f"one of {_LONGEST_SOCKET_PATH - len(SOCKET_NAME) - 1} bytes at most"
        )
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # it is not a folder: reported below
    except OSError as error:
        raise HubError(f"cannot create the hub's folder {path}: {error.strerror}: {_remedy(error)}") from None
    if not _is_private_folder(path):
        raise HubError(
            f"the hub's folder {path} must be a folder that belongs to you and that nobody else may enter "
            f"(mode 0700): change that, or set {DIRECTORY_VARIABLE} to another"
        )
    return path


def chosen_directory() -> str | None:
    """The folder that the environment names, as an absolute path; None if it names none.

    Raises:
        HubError: the environment's path cannot be resolved.
    """
    given = os.environ.get(DIRECTORY_VARIABLE)
    if not given:
        return None
    path = os.path.expanduser(given)
    try:
        if not path.startswith("~"):
            return os.path.abspath(path)
        why = "there is no such user"
    except OSError as error:
        why = f"the working directory is gone ({error.strerror})"
    raise HubError(f"{DIRECTORY_VARIABLE}={given} names no folder: {why}; give an absolute path")


def log_path() -> str:
    """The hub's log, for messages."""
    return os.path.join(directory(), "hub.log")


def cannot_write(path: object, error: OSError) -> str:
    """A sentence: why one of the hub's files cannot be written, and what to do about it."""
    return f"cannot write {path}: {error.strerror or error}: {_remedy(error)}"


def describe_os_error(error: OSError) -> str:
    """The operating system's error message, with the file that it is about, or with the remedy."""
    if error.filename:
        return cannot_write(error.filename, error)
    remedy = f": {_remedy(error)}" if error.errno in _REMEDIES else ""
    return f"{error.strerror or error}{remedy}"


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, _OTHER_REMEDY).format(variable=DIRECTORY_VARIABLE)


def _default_directory() -> str:
    of_user, fallback = (path.format(user=os.getuid()) for path in _DEFAULTS)
    runtime = (os.environ.get("XDG_RUNTIME_DIR", ""), of_user)
    folders = [
        os.path.join(path, "iotops-tunnel") for path in runtime if os.path.isabs(path) and _is_runtime_directory(path)
    ]
    folders = [*filter(_fits, folders), fallback]
    # A hub may have been started by cron, without a login session, or may have outlived one: prefer its folder.
    return next(filter(_is_private_folder, folders), folders[0])


def _is_runtime_directory(path: str) -> bool:
    """Whether it is a runtime directory as the XDG Base Directory Specification requires: private to this user."""
    try:
        return _is_private(os.stat(path)) and os.access(path, os.W_OK | os.X_OK)
    except OSError:
        return False


def _is_private_folder(path: str) -> bool:
    try:
        return _is_private(os.lstat(path))
    except OSError:
        return False


def _is_private(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _fits(path: str) -> bool:
    return len(os.fsencode(os.path.join(path, SOCKET_NAME))) <= _LONGEST_SOCKET_PATH
