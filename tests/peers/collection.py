# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as users get it: built into a tarball, installed from it, and run by Ansible's commands."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import REPOSITORY, wait_for
from .shared import shared_folder

__all__ = ["PYTHON", "Controller", "Installation", "Outcome", "importable", "installed_collection"]

# The Python whose Ansible is tested, for example in an environment with another release of ansible-core and only
# the packages of requirements.txt.
PYTHON = os.environ.get("TEST_ANSIBLE_PYTHON", sys.executable)
_BIN = Path(PYTHON).parent
_RESULT = re.compile(r"^(\S+) \| (\w+)!? => (\{.*?^\})", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Installation:
    """A built tarball, and the folder that it is installed in, for ``ANSIBLE_COLLECTIONS_PATH``."""

    tarball: Path
    path: Path

    @property
    def root(self) -> Path:
        """The folder of the collection's files."""
        return self.path / "ansible_collections" / "iotops" / "tunnel"


@contextmanager
def importable(folder: Path) -> Iterator[Path]:
    """Make the repository importable as ``ansible_collections.iotops.tunnel``, before other collections.

    Args:
        folder: a new folder, which is yielded, and is on Python's path meanwhile.
    """
    namespace = folder / "ansible_collections" / "iotops"
    namespace.mkdir(parents=True)
    (namespace / "tunnel").symlink_to(REPOSITORY)
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))


@functools.cache
def installed_collection() -> Installation:
    """Build and install the collection, once for all workers; it is removed after the tests."""
    folder = shared_folder() / "collection"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            _install(folder)
            (folder / "installed").touch()
    (tarball,) = (folder / "build").glob("*.tar.gz")
    return Installation(tarball, folder)


def _install(folder: Path) -> None:
    environment = {**os.environ, "ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_COLLECTIONS_PATH": str(folder)}

    def galaxy(*arguments: object) -> None:
        command = [str(_BIN / "ansible-galaxy"), "collection", *map(str, arguments)]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)

    galaxy("build", REPOSITORY, "--output-path", folder / "build")
    (tarball,) = (folder / "build").glob("*.tar.gz")
    galaxy("install", tarball, "--offline", "--collections-path", folder)
    # As after a first start. With PYTHONDONTWRITEBYTECODE, every hub would compile everything.
    package = Installation(tarball, folder).root / "tunnelproxy"
    subprocess.run([PYTHON, "-m", "compileall", "-q", package], check=True)


@dataclass(frozen=True)
class Outcome:
    """The result of one host in an ad-hoc run: ``SUCCESS``, ``CHANGED``, ``FAILED`` or ``UNREACHABLE``."""

    word: str
    result: dict[str, Any]

    @property
    def message(self) -> str:
        """The message for the operator."""
        return str(self.result.get("msg", ""))


class Controller:
    """An operator's machine: an inventory, settings, a hub, and the installed collection.

    Args:
        environment: the variables for the control API and the data plane, from ``service env``.
        hosts: variables by inventory host; all hosts use the connection ``iotops.tunnel.ssh``.
        variables: variables of all hosts.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        hosts: Mapping[str, Mapping[str, Any]],
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.timeout = 120.0
        """Seconds that a command may take."""
        # Unix sockets in it need a short path.
        self.home = Path(tempfile.mkdtemp(prefix="ctl-"))
        # With a space, as in some home folders.
        self.control_paths = self.home / "c p"
        self.known_hosts = self.home / "known_hosts"
        self.known_hosts.touch()
        self.inventory = self.home / "inventory.json"
        common = {
            "ansible_connection": "iotops.tunnel.ssh",
            "ansible_python_interpreter": sys.executable,
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.known_hosts} -o GlobalKnownHostsFile=/dev/null",
            **(variables or {}),
        }
        self.inventory.write_text(json.dumps({"devices": {"hosts": {**hosts}, "vars": common}}))
        self.environment = {
            **os.environ,
            **environment,
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
            "ANSIBLE_HOME": str(self.home / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(installed_collection().path),
            "ANSIBLE_INVENTORY": str(self.inventory),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_REMOTE_TEMP": str(self.home / "remote"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.control_paths),
            "IOTOPS_TUNNEL_DIR": str(self.home / "hub"),
        }

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        self.hub("stop")
        wait_for(lambda: not (self.home / "hub" / "hub.sock").exists(), "the hub has exited")
        shutil.rmtree(self.home, ignore_errors=True)

    def disconnect(self) -> None:
        """Stop the ssh processes that are kept for further tasks."""
        for path in self.control_sockets():
            leave = ["ssh", "-o", f'ControlPath="{path}"', "-O", "exit", "any"]
            if subprocess.run(leave, capture_output=True, check=False).returncode:
                path.unlink(missing_ok=True)
        wait_for(lambda: not self.control_sockets(), "the ssh processes have exited")

    def control_sockets(self) -> list[Path]:
        """The control sockets of ssh, one for each persistent connection."""
        return sorted(self.control_paths.glob("*")) if self.control_paths.exists() else []

    def run(self, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of Ansible's commands, and return its output and status, without checking it."""
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.home,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=self.timeout,
        )

    def module(
        self,
        module: str,
        hosts: str = "devices",
        /,
        *options: str,
        env: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> dict[str, Outcome]:
        """Run a module ad hoc, and return the outcome of each host."""
        command = ["ansible", hosts, "-m", module, *options]
        if arguments:
            command += ["-a", json.dumps(arguments)]
        done = self.run(*command, **(env or {}))
        outcomes = {host: Outcome(word, json.loads(text)) for host, word, text in _RESULT.findall(done.stdout)}
        assert outcomes, f"{command} printed {done.stdout}\n{done.stderr}"
        return outcomes

    def tunnel(self, host: str, /, *options: str, env: Mapping[str, str] | None = None, **arguments: Any) -> Outcome:
        """Run iotops.tunnel.tunnel for one host."""
        return self.module("iotops.tunnel.tunnel", host, *options, env=env, **arguments)[host]

    def playbook(self, playbook: object, *options: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a playbook, by its path or its name in the collection."""
        return self.run("ansible-playbook", playbook, *options, **environment)

    def hub(self, *arguments: str) -> str:
        """Run ``tunnelproxy hub`` from the installed collection, and return what it printed."""
        package = installed_collection().root / "tunnelproxy"
        return self.run(PYTHON, package, "hub", *arguments).stdout

    def hub_status(self) -> dict[str, Any]:
        """The status of the hub."""
        status: dict[str, Any] = json.loads(self.hub("status", "--json"))
        return status
