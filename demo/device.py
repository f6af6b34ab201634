# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One device: an SSH server with a host key of its own, an HTTP server, and the destination proxy of its tunnel."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import processes
from .field import Place
from .remains import Remains

__all__ = ["Device", "make_ssh_key"]

SHADOW = Path("/etc/shadow")


class Device:
    """A device, known by its thing name.

    Args:
        place: where in the network it is.
        remains: where it puts what has to be removed later.
    """

    def __init__(self, thing: str, place: Place, remains: Remains) -> None:
        self.thing = thing
        self.place = place
        self.folder = remains.folder / "devices" / thing
        self.tmp = remains.runtime / "tmp" / thing
        self._remains = remains
        self._logs = remains.logs / thing
        self._secrets = remains.runtime / thing
        self._host_key = self._secrets / "ssh_host_key"
        # What a device has in its environment, and not what the user has: no keys of AWS's, no token but its own.
        self._environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}

    @property
    def mapping(self) -> str:
        """Where each service of the tunnel leads to, as the destination proxy takes it."""
        return f"SSH1={self.place.ssh_port},HTTP1={self.place.http_port}"

    def start_servers(self, authorized_key: Path) -> None:
        """Start the SSH server, which lets one key in, and the HTTP server."""
        for path in (self.folder, self._logs, self._secrets):
            path.mkdir(mode=0o700, parents=True)
        self.tmp.mkdir(parents=True)
        self.tmp.chmod(0o1777)
        self._start_ssh(authorized_key)
        self._start_http()

    def connect(self, token: str, service: Mapping[str, str]) -> None:
        """Start the destination proxy, and wait until it is connected.

        Args:
            token: the access token of the tunnel's destination.
            service: where the tunneling service is, by the names of the environment variables.
        """
        log = self._logs / "proxy.log"
        # In the environment, which nobody else may read, and not on the command line.
        environment = {**self._environment, **service, "AWSIOT_TUNNEL_ACCESS_TOKEN": token}
        command = [str(Path(sys.executable).parent / "tunnelproxy"), "-d", self.mapping]
        process = self._start(command, log, environment)
        processes.wait_for(process, log, "connected to", f"the destination proxy of {self.thing}")

    def known_hosts_line(self) -> str:
        """The host key by which the operator knows this device."""
        kind, key, *_ = Path(f"{self._host_key}.pub").read_text().split()
        return f"{self.thing} {kind} {key}\n"

    def _start_ssh(self, authorized_key: Path) -> None:
        make_ssh_key(self._host_key)
        if os.geteuid() == 0:
            # Where sshd wants to find an empty folder. Any other sshd here wants the same one: it stays.
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
        }
        config = self._secrets / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        log = self._logs / "sshd.log"
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
        if sshd is None:
            raise processes.Failure("sshd is not there: run scripts/system-packages sshd")
        # By its full path: sshd runs itself again for each connection.
        process = self._start([sshd, "-D", "-e", "-f", str(config)], log, self._environment)
        processes.wait_for(process, log, "Server listening", f"the SSH server of {self.thing}")

    def _start_http(self) -> None:
        pages = self.folder / "www"
        pages.mkdir()
        (pages / "index.html").write_text(f"{self.thing} is well\n")
        log = self._logs / "http.log"
        port = str(self.place.http_port)
        command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(pages), port]
        process = self._start(command, log, self._environment)
        processes.wait_for(process, log, "Serving HTTP", f"the HTTP server of {self.thing}")

    def _start(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        process = processes.start([*self.place.prefix, *command], log, environment)
        self._remains.add_process(process.pid)
        return process


def make_ssh_key(path: Path) -> None:
    """Make a key pair, the public key in a file with ``.pub`` added."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)  # noqa: S603  our own command


def _account_is_locked() -> bool:
    """Whether sshd would refuse this account without PAM: root has no password on many a machine."""
    try:
        lines = SHADOW.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{getpass.getuser()}:!") for line in lines)
