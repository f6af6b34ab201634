# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's side: the collection as users install it, an inventory, and settings apart from the user's own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunnelproxy.hub import client

from .device import Device, make_ssh_key
from .narrator import Narrator
from .processes import Failure
from .remains import Remains

__all__ = ["REPOSITORY", "Controller", "become_here"]

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

# The devices have this machine's files. Better the system's Python than ours, which may lie where only root may go, or
# than what discovery finds: a python3.x of pyenv's that leads nowhere.
DEVICE_PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable

# Nothing else of the user's environment: no HTTP proxy, since no byte leaves this machine, and no Ansible settings.
KEPT_VARIABLES = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")

TERMINATE_SECONDS = 8.0


@dataclass(frozen=True)
class Become:
    """How the playbook becomes another user on a device, in Ansible's words."""

    method: str
    user: str
    flags: str


class Controller:
    """Types the commands of the story, each shown as it is typed."""

    def __init__(self, remains: Remains, narrator: Narrator) -> None:
        self.ssh_key = remains.runtime / "ssh_key"
        self.fetched = remains.folder / "fetched"
        self.inventory = remains.folder / "inventory"
        self._remains = remains
        self._narrator = narrator
        self._folder = remains.folder
        self._known_hosts = remains.runtime / "known_hosts"
        self.environment = {
            **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
            "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(self._folder / "ansible.cfg"),
            "ANSIBLE_FORCE_COLOR" if narrator.colour else "ANSIBLE_NOCOLOR": "1",
            "IOTOPS_TUNNEL_DIR": str(remains.hub),
        }

    def prepare(self) -> None:
        """Write Ansible's settings, and make the operator's SSH key."""
        make_ssh_key(self.ssh_key)
        (self._folder / "ansible.cfg").write_text(self._settings())

    def use_service(self, environment: Mapping[str, str]) -> None:
        """Make every command use a tunneling service, by what its ``env`` command says."""
        self.environment.update(environment)

    def know(self, devices: Sequence[Device], become: Become | None) -> None:
        """Write the inventory, and the devices' host keys, which an operator has from when the device was made."""
        lines = ["[devices]"]
        lines += [
            f"{device.thing} device_folder={shlex.quote(str(device.folder))} device_tmp={device.tmp}"
            for device in devices
        ]
        variables = {
            "ansible_connection": "iotops.tunnel.ssh",
            "ansible_python_interpreter": DEVICE_PYTHON,
            "ansible_user": getpass.getuser(),
            "ansible_ssh_private_key_file": self.ssh_key,
            "ansible_remote_tmp": "{{ device_tmp }}",
            "ansible_system_tmpdirs": "['{{ device_tmp }}']",
            "fetched_folder": self.fetched,
        }
        if become is not None:
            variables["ansible_become_method"] = become.method
            variables["ansible_become_user"] = become.user
            variables["ansible_become_flags"] = become.flags
        lines += ["", "[devices:vars]", *(f"{name}={value}" for name, value in variables.items())]
        self.inventory.write_text("\n".join(lines) + "\n")
        self._known_hosts.write_text("".join(device.known_hosts_line() for device in devices))

    def write_environment(self, state_dir: Path, service_host: str) -> Path:
        """Write a file for a shell to source, without secrets, and return its path."""
        path = self._folder / "env"
        lines = [
            f'export PATH={shlex.quote(str(BIN))}:"$PATH"',
            *(
                f"export {name}={shlex.quote(self.environment[name])}"
                for name in ("ANSIBLE_CONFIG", "IOTOPS_TUNNEL_DIR")
            ),
            f'export no_proxy="{service_host}" NO_PROXY="{service_host}"',
            f'eval "$(tunnelproxy service env --state-dir {shlex.quote(str(state_dir))})"',
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    def pages(self) -> list[tuple[str, str]]:
        """Each device, and the URL of its web pages on this machine."""
        os.environ[client.DIRECTORY_VARIABLE] = self.environment[client.DIRECTORY_VARIABLE]
        tunnels = (client.status() or {"tunnels": ()})["tunnels"]
        return [(tunnel["thing"], tunnel["services"]["HTTP1"]["url"]) for tunnel in tunnels]

    def run(self, *command: str, quiet: bool = False) -> str:
        """Type a command, show what it prints unless it is to be quiet, and return that.

        Raises:
            Failure: it ended with another status than 0.
        """
        self._narrator.command(shlex.join(command))
        status, output = self._run(command, quiet=quiet)
        if status != 0:
            if quiet:
                self._show(output)
            raise Failure(f"'{command[0]}' ended with status {status}.")
        return output

    def run_in_vain(self, *command: str) -> None:
        """Type a command that has to fail.

        Raises:
            Failure: it succeeded.
        """
        self._narrator.command(shlex.join(command))
        status, _ = self._run(command, quiet=False)
        if status == 0:
            raise Failure(f"'{command[0]}' succeeded, which it must not.")

    def _run(self, command: Sequence[str], *, quiet: bool) -> tuple[int, str]:
        # In a session of its own: Ctrl-C reaches us alone, and we end the command with all that it has started.
        with (
            subprocess.Popen(  # noqa: S603  our own commands
                command,
                executable=shutil.which(command[0], path=self.environment["PATH"]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self.environment,
                cwd=REPOSITORY,
                start_new_session=True,
            ) as process,
            (self._remains.logs / "commands.log").open("a") as log,
        ):
            log.write(f"$ {shlex.join(command)}\n")
            lines = []
            try:
                for line in process.stdout or ():
                    log.write(line)
                    lines.append(line)
                    if not quiet:
                        self._narrator.answer(line.rstrip())
            except BaseException:
                _end_group(process)
                raise
        return process.returncode, "".join(lines)

    def _show(self, output: str) -> None:
        for line in output.splitlines():
            self._narrator.answer(line)

    def _settings(self) -> str:
        known = f"-F none -o UserKnownHostsFile={self._known_hosts} -o GlobalKnownHostsFile=none -o IdentitiesOnly=yes"
        return f"""\
# Ansible's settings in the demo. Those that a user of the collection needs are none of these: they only keep the demo
# apart from your own settings, known hosts and caches.
[defaults]
home = {self._folder}/ansible
inventory = {self.inventory}
collections_path = {self._folder}/collections
remote_tmp = {self._folder}/ansible/tmp
host_key_checking = true
display_skipped_hosts = false
callback_result_format = yaml

[ssh_connection]
# Fewer trips per task.
pipelining = true
# An sshd that is not root's cannot give out terminals everywhere.
usetty = false
control_path_dir = {self._remains.runtime}/cp
ssh_common_args = {known}
"""


def become_here() -> Become | None:
    """How to become another user on a device, which has the users of this machine; None if it is not possible."""
    root = os.geteuid() == 0
    # root needs no password; nobody has no shell of its own.
    become = Become("su", "nobody", "-s /bin/sh") if root else Become("sudo", "root", "-n")
    attempt = (
        ["su", "-s", "/bin/sh", "nobody", "-c", f"{DEVICE_PYTHON} -c ''"]
        if root
        else ["sudo", "-n", DEVICE_PYTHON, "-c", ""]
    )
    try:
        subprocess.run(attempt, check=True, capture_output=True, stdin=subprocess.DEVNULL, cwd="/")  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return become


def _end_group(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATE_SECONDS)
            return
