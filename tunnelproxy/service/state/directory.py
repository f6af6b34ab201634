# SPDX-License-Identifier: Apache-2.0
"""The directory with the state of a service, readable by its owner only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ...files import replace_file
from ...names import format_host_port
from ..errors import ServiceError

__all__ = ["Endpoints", "StateDirectory", "acting_as_owner", "default_path", "user_name"]


def default_path() -> Path:
    """``$XDG_STATE_HOME/tunnelproxy/service``, or the same below ``~/.local/state`` (XDG Base Directories)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification says to ignore relative paths.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return root / "tunnelproxy" / "service"


@dataclass(frozen=True)
class Endpoints:
    """The addresses at which clients find a service.

    Attributes:
        host: the name or address for clients.
        own_certificate: whether it has the operator's certificate, not one of its own authority.
    """

    host: str
    api_port: int
    data_port: int
    own_certificate: bool = False

    @property
    def api(self) -> str:
        """The control API's URL."""
        return f"https://{self._address(self.api_port)}"

    @property
    def data(self) -> str:
        """The data plane's ``HOST:PORT``."""
        return self._address(self.data_port)

    def _address(self, port: int) -> str:
        return format_host_port(self.host, port)


class StateDirectory:
    """The paths of a service's files, and access to them.

    Args:
        path: the directory, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.database = self.path / "service.db"
        self.keys = self.path / "keys"
        self.ca = self.path / "ca"
        self.audit_log = self.path / "audit.log"
        self.broker_files = self.path / "mqtt"
        self.broker_address = self.path / "broker.json"
        self._endpoints = self.path / "endpoints.json"
        self._lock = self.path / "lock"

    def create(self) -> None:
        """Create the directory with mode 0700 if it is missing.

        Raises:
            ServiceError: it cannot be created, or belongs to another user.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_others()
            self.path.chmod(0o700)
        except OSError as error:
            raise ServiceError(
                f"cannot use the state directory {self.path}: {error.strerror}; give --state-dir another one"
            ) from error

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Act as the owner of the directory, as root can, within the block.

        Raises:
            ServiceError: it belongs to another user, or cannot be accessed.
        """
        try:
            with acting_as_owner(self.path):
                self._refuse_others()
                yield
        except PermissionError as error:
            raise ServiceError(
                f"cannot use {error.filename or self.path} in the state directory {self.path}: {error.strerror}; run "
                "this as the owner of the directory, or give --state-dir another one"
            ) from error

    def _refuse_others(self) -> None:
        status = _status(self.path)
        if status is not None and status.st_uid != os.geteuid():
            owner = user_name(status.st_uid)
            raise ServiceError(
                f"the state directory {self.path} belongs to another user: run this as {owner} (sudo -u {owner} …), or "
                "give --state-dir another one"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory for this process within the block.

        Raises:
            ServiceError: another process has locked it.
        """
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise ServiceError(
                f"a tunneling service (process {holder}) already runs with the state directory {self.path}; "
                "stop it, or give --state-dir another directory"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            # This releases the lock. The file stays: removing it would race with the next process that locks it.
            os.close(fd)

    def write_endpoints(self, endpoints: Endpoints) -> None:
        """Write where the service listens, for ``service env`` and for the next run."""
        replace_file(self._endpoints, json.dumps(asdict(endpoints)).encode())

    def read_endpoints(self) -> Endpoints | None:
        """The addresses of the current or last run; None before the first run.

        Raises:
            ServiceError: the file is damaged.
        """
        try:
            found = json.loads(self._endpoints.read_bytes())
            return Endpoints(
                str(found["host"]),
                int(found["api_port"]),
                int(found["data_port"]),
                bool(found.get("own_certificate", False)),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"{self._endpoints} is damaged; remove it, and start the service again") from error


@contextlib.contextmanager
def acting_as_owner(path: Path) -> Iterator[None]:
    """If the process runs as root, act as the owner of a directory within the block.

    Files written there then belong to that user, who can read them; and a symbolic link that the user has put there
    cannot redirect root.
    """
    owner = _status(path) if os.geteuid() == 0 else None
    if owner is None or owner.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def user_name(uid: int) -> str:
    """The name of a user, or the number if the user has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
