# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A record of everything that a demo has to remove, kept in a file.

The demo removes it all when it ends. After ``KEEP=1``, ``make demo-stop`` does so, and after a demo that was killed,
the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tunnelproxy.hub import client

from . import processes
from .network import Namespaces

__all__ = ["Cleanup", "locked"]

FILE_NAME = "cleanup.json"
LOGS = "logs"


@dataclass
class Cleanup:
    """What to remove.

    Attributes:
        folder: the demo's files, accessible to this user only.
        runtime: a folder with a short path, for sockets, SSH keys, and files that other users of a device need.
        slot: the number of the bridge, if there are namespaces.
        started: background processes, as process IDs and start times.
        kept: whether the user asked to leave the demo running.
    """

    folder: Path
    runtime: Path
    slot: int | None = None
    started: list[tuple[int, int]] = field(default_factory=list)
    kept: bool = False

    @classmethod
    def begin(cls, folder: Path) -> Cleanup:
        """Create the folders of a new demo."""
        # The path of a Unix socket is limited to about 100 characters, and the folder's path may be long.
        cleanup = cls(folder, Path(tempfile.mkdtemp(prefix="iotops-demo-", dir="/tmp")))
        # With become, a playbook's other user reaches the device's temporary folder and no other folder.
        cleanup.runtime.chmod(0o711)
        cleanup.save()
        shutil.rmtree(cleanup.logs, ignore_errors=True)
        for path in (cleanup.logs, cleanup.hub):
            path.mkdir(mode=0o700)
        return cleanup

    @classmethod
    def load(cls, folder: Path) -> Cleanup | None:
        """The record of an earlier demo, if there is one."""
        try:
            data = json.loads((folder / FILE_NAME).read_text())
        except (FileNotFoundError, ValueError):
            return None
        started = [(pid, when) for pid, when in data["started"]]
        return cls(folder, Path(data["runtime"]), data["slot"], started, data["kept"])

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self.folder / LOGS

    @property
    def hub(self) -> Path:
        """The folder of the demo's hub, separate from the user's own."""
        return self.runtime / "hub"

    def save(self) -> None:
        """Write the file."""
        data = {**asdict(self), "folder": str(self.folder), "runtime": str(self.runtime)}
        new = self.folder / f"{FILE_NAME}.new"
        new.write_text(json.dumps(data))
        new.replace(self.folder / FILE_NAME)

    def add_process(self, pid: int) -> None:
        """Record a process that was started."""
        started = processes.start_time(pid)
        if started is not None:
            self.started.append((pid, started))
            self.save()

    def keep(self) -> None:
        """Leave everything running until ``make demo-stop``."""
        self.started = sorted({*self.started, *processes.descendants(os.getpid())})
        self.kept = True
        self.save()

    def remove(self, *, keep_logs: bool = False) -> None:
        """Stop the processes, and remove namespaces, files and, unless ``keep_logs`` is true, logs."""
        self._stop_hub()
        processes.end({*self.started, *processes.descendants(os.getpid())})
        if self.slot is not None:
            network = Namespaces(self.slot)
            inside = ((pid, processes.start_time(pid)) for pid in network.processes())
            processes.end([(pid, started) for pid, started in inside if started is not None])
            network.remove()
        shutil.rmtree(self.runtime, ignore_errors=True)
        _empty(self.folder, {LOGS} if keep_logs else set())

    def _stop_hub(self) -> None:
        if not self.hub.is_dir():
            return
        os.environ[client.DIRECTORY_VARIABLE] = str(self.hub)
        with contextlib.suppress(client.HubError):
            client.stop()
        with contextlib.suppress(OSError):
            shutil.copy(self.hub / "hub.log", self.logs)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Create the folder and hold its lock; yield False if another demo holds it. Removes the folder if it is empty."""
    descriptor = _open_locked(folder)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()
            os.close(descriptor)


def _open_locked(folder: Path) -> int | None:
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        # The previous holder may have removed the folder, in which case this lock protects nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def _empty(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
