# SPDX-License-Identifier: Apache-2.0
"""Mosquitto's password file: a line per user, with a salted hash."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ...files import replace_file

__all__ = ["PasswordFile", "new_password", "password_line"]

_PASSWORD_BYTES = 32
_SALT_BYTES = 12
_ROUNDS = 101
"""Mosquitto's default, too few for passwords that people choose; but these have 256 random bits."""


def new_password() -> str:
    """A random password."""
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def password_line(user: str, password: str) -> str:
    """A line of Mosquitto's password file.

    Source: mosquitto_passwd(1) of Mosquitto 2.0: type 7 is PBKDF2 with SHA-512, and the number of rounds follows.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    hashed = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS)
    return f"{user}:$7${_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(hashed).decode()}"


class PasswordFile:
    """A password file that several processes can change."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, user: str) -> str:
        """Give a user a new password, and return it."""
        password = new_password()
        with self._changing() as lines:
            lines[user] = password_line(user, password)
        return password

    def remove(self, user: str) -> bool:
        """Remove a user; return whether there was one."""
        with self._changing() as lines:
            return lines.pop(user, None) is not None

    def has(self, user: str) -> bool:
        """Whether there is a user of this name."""
        return user in self._read()

    def users(self) -> frozenset[str]:
        """All users."""
        return frozenset(self._read())

    def version(self) -> tuple[int, int]:
        """A value that changes whenever the file is replaced."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_ino)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, str]]:
        lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lines = self._read()
            yield lines
            replace_file(self.path, "".join(f"{line}\n" for line in lines.values()).encode())
        finally:
            os.close(lock)

    def _read(self) -> dict[str, str]:
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return {line.partition(":")[0]: line for line in lines}
