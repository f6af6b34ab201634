# SPDX-License-Identifier: Apache-2.0
"""The directory that holds all state of one service, readable by its owner only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import ServiceError

__all__ = ["Endpoints", "StateDirectory", "default_path", "replace_file"]


def default_path() -> Path:
    """``$XDG_STATE_HOME/tunnelproxy/service``, or the same below ``~/.local/state`` (XDG Base Directories)."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification tells to ignore relative paths.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return root / "tunnelproxy" / "service"


@dataclass(frozen=True)
class Endpoints:
    """Where clients find a service.

    Attributes:
        host: the name or address for clients.
        own_certificate: whether it has a certificate of the operator's own, rather than of its own authority.
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
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class StateDirectory:
    """Names and guards the files of one service.

    Args:
        path: the directory; it need not exist yet.
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
        """Make the directory, with mode 0700, unless it is there.

        Raises:
            ServiceError: it cannot be made, or belongs to another user.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.stat().st_uid != os.geteuid():
                raise ServiceError(
                    f"the state directory {self.path} belongs to another user; give --state-dir another one"
                )
            self.path.chmod(0o700)
        except OSError as error:
            raise ServiceError(
                f"cannot use the state directory {self.path}: {error.strerror}; give --state-dir another one"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Claim the directory for this process as long as the block runs.

        Raises:
            ServiceError: another process has it.
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
            # Which lets go of the lock. The file stays: removing it would race with the next one to lock it.
            os.close(fd)

    def write_endpoints(self, endpoints: Endpoints) -> None:
        """Remember where the service listens, for ``service env`` and for the next run."""
        replace_file(self._endpoints, json.dumps(asdict(endpoints)).encode())

    def read_endpoints(self) -> Endpoints | None:
        """Where the service listens, or listened last; None before the first run.

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


def replace_file(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 so that readers see the old content or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)
