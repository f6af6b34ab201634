# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Ansible controller: the collection as users install it, an inventory, and settings separate from the user's."""

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

from .cleanup import Cleanup
from .console import Console
from .device import Device, make_ssh_key
from .processes import Failure

__all__ = ["REPOSITORY", "Controller", "available_become"]

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

# The devices share this machine's files. Our own Python may be in a folder that only root can read, and interpreter
# discovery may find a pyenv shim that does not work, so use the system's Python.
DEVICE_PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable

# Nothing else of the user's environment: no HTTP proxy, since no byte leaves this machine, and no Ansible settings.
KEPT_VARIABLES = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")

TERMINATE_SECONDS = 8.0


@dataclass(frozen=True)
class Become:
    """Ansible's settings to become another user on a device."""

    method: str
    user: str
    flags: str


class Controller:
    """Runs the commands of the scenario, and shows each of them."""

    def __init__(self, cleanup: Cleanup, console: Console) -> None:
        self.ssh_key = cleanup.runtime / "ssh_key"
        self.fetched = cleanup.folder / "fetched"
        self.inventory = cleanup.folder / "inventory"
        self._cleanup = cleanup
        self._console = console
        self._folder = cleanup.folder
        self._known_hosts = cleanup.runtime / "known_hosts"
        self.environment = {
            **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
            "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(self._folder / "ansible.cfg"),
            "ANSIBLE_FORCE_COLOR" if console.colour else "ANSIBLE_NOCOLOR": "1",
            "IOTOPS_TUNNEL_DIR": str(cleanup.hub),
        }

    def prepare(self) -> None:
        """Write Ansible's settings, and create the operator's SSH key."""
        make_ssh_key(self.ssh_key)
        (self._folder / "ansible.cfg").write_text(self._settings())

    def use_service(self, environment: Mapping[str, str]) -> None:
        """Make every command use the tunneling service that these variables name."""
        self.environment.update(environment)

    def write_inventory(self, devices: Sequence[Device], become: Become | None) -> None:
        """Write the inventory and known_hosts. An operator gets the host key when installing the device."""
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
        """Write a file without secrets for the user's shell to source, and return its path."""
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
        """Each device, with the URL of its web pages on this machine."""
        os.environ[client.DIRECTORY_VARIABLE] = self.environment[client.DIRECTORY_VARIABLE]
        tunnels = (client.status() or {"tunnels": ()})["tunnels"]
        return [(tunnel["thing"], tunnel["services"]["HTTP1"]["url"]) for tunnel in tunnels]

    def run(self, *command: str, quiet: bool = False) -> str:
        """Run a command, and return its output, which is shown unless ``quiet`` is true.

        Raises:
            Failure: the command failed.
        """
        self._console.command(shlex.join(command))
        status, output = self._run(command, quiet=quiet)
        if status != 0:
            if quiet:
                self._print_output(output)
            raise Failure(f"'{command[0]}' failed with status {status}.")
        return output

    def run_expecting_failure(self, *command: str) -> None:
        """Run a command that must fail.

        Raises:
            Failure: the command succeeded.
        """
        self._console.command(shlex.join(command))
        status, _ = self._run(command, quiet=False)
        if status == 0:
            raise Failure(f"'{command[0]}' succeeded, but must fail.")

    def _run(self, command: Sequence[str], *, quiet: bool) -> tuple[int, str]:
        # In its own session: Ctrl-C reaches only the demo, which stops the command and its descendants.
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
            (self._cleanup.logs / "commands.log").open("a") as log,
        ):
            log.write(f"$ {shlex.join(command)}\n")
            lines = []
            try:
                for line in process.stdout or ():
                    log.write(line)
                    lines.append(line)
                    if not quiet:
                        self._console.output(line.rstrip())
            except BaseException:
                _end_group(process)
                raise
        return process.returncode, "".join(lines)

    def _print_output(self, output: str) -> None:
        for line in output.splitlines():
            self._console.output(line)

    def _settings(self) -> str:
        known = f"-F none -o UserKnownHostsFile={self._known_hosts} -o GlobalKnownHostsFile=none -o IdentitiesOnly=yes"
        return f"""\
# Ansible's settings for the demo. Users of the collection need none of them: they keep the demo separate from your own
# settings, known hosts and caches.
[defaults]
home = {self._folder}/ansible
inventory = {self.inventory}
collections_path = {self._folder}/collections
remote_tmp = {self._folder}/ansible/tmp
host_key_checking = true
display_skipped_hosts = false
callback_result_format = yaml

[ssh_connection]
# An sshd that does not run as root cannot allocate terminals on every system.
usetty = false
control_path_dir = {self._cleanup.runtime}/cp
ssh_common_args = {known}
"""


def available_become() -> Become | None:
    """How to become another user on a device, which has the users of this machine; None if that is not possible."""
    root = os.geteuid() == 0
    # root needs no password; the user nobody has no login shell.
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
