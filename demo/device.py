# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One device: an SSH server with its own host key, an HTTP server, and the agent that serves its tunnels."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import processes
from .cleanup import Cleanup
from .network import Place

__all__ = ["Device", "make_ssh_key"]

SHADOW = Path("/etc/shadow")


class Device:
    """A device, known by its thing name.

    Args:
        place: its place in the network.
        cleanup: where it records what to remove later.
    """

    def __init__(self, thing: str, place: Place, cleanup: Cleanup) -> None:
        self.thing = thing
        self.place = place
        self.folder = cleanup.folder / "devices" / thing
        self.tmp = cleanup.runtime / "tmp" / thing
        self._cleanup = cleanup
        self._logs = cleanup.logs / thing
        self._secrets = cleanup.runtime / thing
        self._host_key = self._secrets / "ssh_host_key"
        # What a device has in its environment, and not what the user has: no keys of AWS's.
        self._environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}

    @property
    def services(self) -> str:
        """Where each service of the tunnel leads to on the device, as ``service add-thing`` takes it."""
        return f"SSH1={self.place.ssh_port},HTTP1={self.place.http_port}"

    @property
    def enrolment(self) -> Path:
        """The folder that ``service add-thing`` writes for the device, its password in a file that only we may read."""
        return self.folder / "agent"

    @property
    def agent_command(self) -> tuple[str, ...]:
        """The command that starts the agent on the device."""
        return ("tunnelproxy", "agent", "run", "--config", "agent.yml")

    def start_servers(self, authorized_key: Path) -> None:
        """Start the SSH server, which accepts one key, and the HTTP server."""
        for path in (self.folder, self._logs, self._secrets):
            path.mkdir(mode=0o700, parents=True)
        self.tmp.mkdir(parents=True)
        self.tmp.chmod(0o1777)
        self._start_ssh(authorized_key)
        self._start_http()

    def start_agent(self) -> None:
        """Start the agent, and wait until it has subscribed to notifications."""
        log = self._logs / "agent.log"
        name, *arguments = self.agent_command
        process = self._start([str(Path(sys.executable).parent / name), *arguments], log, cwd=self.enrolment)
        processes.wait_for(process, log, "waiting for notifications", f"the agent of {self.thing}")

    def known_hosts_line(self) -> str:
        """The device's host key, as a line for known_hosts."""
        kind, key, *_ = Path(f"{self._host_key}.pub").read_text().split()
        return f"{self.thing} {kind} {key}\n"

    def _start_ssh(self, authorized_key: Path) -> None:
        make_ssh_key(self._host_key)
        if os.geteuid() == 0:
            # sshd requires this empty folder. It is not removed, as another sshd may use it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        settings = {
            "ListenAddress": "127.0.0.1",
            "Port": self.place.ssh_port,
            "HostKey": self._host_key,
            "AuthorizedKeysFile": f"{authorized_key}.pub",
            "StrictModes": "no",
            "UsePAM": "yes" if _account_is_locked() else "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "PidFile": "none",
            "PrintMotd": "no",
            "Subsystem": "sftp internal-sftp",
            "LogLevel": "VERBOSE",
            # Otherwise the shell would read the user's own .bashrc before each command.
            "SetEnv": f'"HOME={self.folder}"',
        }
        config = self._secrets / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        log = self._logs / "sshd.log"
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
        if sshd is None:
            raise processes.Failure("sshd is not installed: run scripts/system-packages sshd")
        # sshd requires its full path, because it executes itself for each connection.
        process = self._start([sshd, "-D", "-e", "-f", str(config)], log)
        processes.wait_for(process, log, "Server listening", f"the SSH server of {self.thing}")

    def _start_http(self) -> None:
        pages = self.folder / "www"
        pages.mkdir()
        (pages / "index.html").write_text(f"{self.thing} is up\n")
        log = self._logs / "http.log"
        port = str(self.place.http_port)
        command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(pages), port]
        process = self._start(command, log)
        processes.wait_for(process, log, "Serving HTTP", f"the HTTP server of {self.thing}")

    def _start(self, command: Sequence[str], log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        process = processes.start([*self.place.prefix, *command], log, self._environment, cwd)
        self._cleanup.add_process(process.pid)
        return process


def make_ssh_key(path: Path) -> None:
    """Create a key pair; the file of the public key has ``.pub`` appended."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)  # noqa: S603  our own command


def _account_is_locked() -> bool:
    """Whether sshd would reject this account without PAM: on many machines, root has no password."""
    try:
        lines = SHADOW.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{getpass.getuser()}:!") for line in lines)
