# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible.builtin.ssh does, iotops.tunnel.ssh does through a tunnel: each method of transfer, with and without
pipelining.

Each playbook runs once, over several hosts at a time, one for each combination. They are things with an sshd each, and
none is named like its host in the inventory. ``TEST_CONFORMANCE=1`` takes all six combinations and not three, all
sizes of files and many names, and runs all of it over plain ssh to the same SSH servers too, which shows that the
playbooks ask for nothing else.
``TEST_ANSIBLE_PYTHON`` chooses the ansible-core.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peers.accounts import Accounts, why_impossible
from peers.fleet import Fleet

FULL = os.environ.get("TEST_CONFORMANCE") == "1"
COMBINATIONS = tuple(itertools.product(("sftp", "scp", "piped"), ("pipelined", "unpipelined")))
if not FULL:
    COMBINATIONS = (("sftp", "unpipelined"), ("scp", "pipelined"), ("piped", "unpipelined"))
CONNECTIONS = ("iotops.tunnel.ssh", "ansible.builtin.ssh") if FULL else ("iotops.tunnel.ssh",)
TIMEOUT = 1800.0 if FULL else 300.0
PLAYBOOKS = Path(__file__).parent / "playbooks"

SIZES = {"nothing": 0, "one-byte": 1, "many-bytes": 100_000_000} if FULL else {"some-bytes": 1_000_000}
AWKWARD = '-it\'s "quoted",  Grüße 日本語 🐧'
NAMES = (
    AWKWARD,
    "two  spaces",
    "it's",
    "-dash",
    "Grüße-日本語-🐧",
    "$HOME `id` ; & | < >",
    "*?[a]",
    "back\\slash",
    "%h %% #",
    "~",
    "new\nline",
    "tab\there",
)
PASSWORDS = {"operator": "Schlüssel zum Zähler", "freely": "none is asked for", "worker": "Brot & Butter"}
SUDOERS = "operator ALL=(ALL) ALL\nfreely ALL=(ALL) NOPASSWD: ALL\n"
WITHOUT_ACCOUNTS = why_impossible()
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+) +changed=\d+ +unreachable=(\d+) +failed=(\d+)", re.MULTILINE)

pytestmark = pytest.mark.timeout(TIMEOUT + 60)


@dataclass(frozen=True)
class Bench:
    """Devices, and a controller that reaches them in two ways.

    Attributes:
        here: files of the controller's, to be copied to each device.
        environment: what Ansible's commands are given beside the controller's own environment.
    """

    fleet: Fleet
    here: Path
    environment: dict[str, str]

    def hosts(self, connection: str) -> list[str]:
        prefix = "" if connection == "iotops.tunnel.ssh" else "reference-"
        return [f"{prefix}{method}-{pipelining}" for method, pipelining in COMBINATIONS]

    def device(self, host: str) -> Path:
        """The folder of a host's files, on its device."""
        return self.fleet.home / "files" / host

    def back(self, host: str) -> Path:
        """The folder of what was fetched from a host."""
        return self.fleet.home / "back" / host

    def run(self, playbook: str, connection: str, **variables: Any) -> None:
        """Run a playbook over the combinations, and see that no host was left out."""
        for host in self.hosts(connection):
            self.device(host).mkdir(parents=True, exist_ok=True)
        options = (
            "--limit",
            ",".join(self.hosts(connection)),
            "--forks",
            str(len(COMBINATIONS)),
            "-e",
            json.dumps(variables),
        )
        done = self.fleet.controller.playbook(PLAYBOOKS / playbook, *options, **self.environment)
        recap = {host: tuple(map(int, numbers)) for host, *numbers in _RECAP.findall(done.stdout)}
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(recap) == sorted(self.hosts(connection))
        assert all(ok > 0 and (unreachable, failed) == (0, 0) for ok, unreachable, failed in recap.values()), recap


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="accounts-") as folder:
        yield from _bench(Path(folder))


def _bench(folder: Path) -> Iterator[Bench]:
    enter: list[str] = []
    if not WITHOUT_ACCOUNTS:
        # Their homes are there, and they must get in.
        folder.chmod(0o711)
        enter = [str(part) for part in Accounts(folder, PASSWORDS, sudoers=SUDOERS).command([])]
    things = [f"{method}:{pipelining}" for method, pipelining in COMBINATIONS]
    with Fleet(*things, enter=dict.fromkeys(things, enter)) as fleet:
        here = fleet.home / "files here"
        here.mkdir()
        controller = fleet.controller
        controller.timeout = TIMEOUT
        controller.control_paths = controller.home / "c p"
        hosts: dict[str, dict[str, Any]] = {}
        for thing, (method, pipelining) in zip(things, COMBINATIONS):
            device = fleet.devices[thing]
            host = f"{method}-{pipelining}"
            variables = {
                "method": method,
                "pipelined": pipelining == "pipelined",
                "ansible_ssh_transfer_method": method,
                "ansible_ssh_pipelining": pipelining == "pipelined",
                "ansible_async_dir": str(fleet.home / "async"),
                "sshd_port": device.sshd.port,
                "sshd_pid": device.sshd.process.pid,
                "here": str(here),
            }
            common = json.loads(controller.inventory.read_text())["devices"]["vars"]
            reference = {
                **common,
                "ansible_connection": "ansible.builtin.ssh",
                "ansible_host": "127.0.0.1",
                "ansible_port": device.sshd.port,
                # Not among the extra arguments, for which tasks have others.
                "ansible_ssh_common_args": f"{common['ansible_ssh_common_args']} -o HostKeyAlias={thing}",
            }
            for name, more in ((host, {}), (f"reference-{host}", reference)):
                folders = {"device": str(fleet.home / "files" / name), "back": str(fleet.home / "back" / name)}
                hosts[name] = {**variables, **more, **folders}
        inventory = controller.home / "combinations.json"
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        environment = {
            "ANSIBLE_INVENTORY": f"{controller.inventory},{inventory}",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(controller.control_paths),
            # What is asked here is not how quick a busy machine is.
            "ANSIBLE_TIMEOUT": "60",
            "ANSIBLE_LOCAL_TEMP": str(controller.home / "local tmp"),
        }
        yield Bench(fleet, here, environment)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_commands(bench: Bench, connection: str) -> None:
    bench.run("commands.yml", connection)


@pytest.mark.skipif(not FULL, reason="test_ansible_ssh.py has some of it; all of it with TEST_CONFORMANCE=1")
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_connections(bench: Bench, connection: str) -> None:
    bench.run("connections.yml", connection)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_strategies(bench: Bench, connection: str) -> None:
    bench.run("strategies.yml", connection)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_transfers(bench: Bench, connection: str) -> None:
    digests = {}
    for name, size in SIZES.items():
        content = os.urandom(size)
        digests[name] = hashlib.sha256(content).digest()
        (bench.here / name).write_bytes(content)
        (bench.here / f"{name}.sha1").write_text(hashlib.sha1(content).hexdigest())
    (bench.here / AWKWARD).write_text(AWKWARD)
    bench.run("transfers.yml", connection, sizes=list(SIZES), awkward=AWKWARD)
    for host in bench.hosts(connection):
        for folder in (bench.device(host), bench.back(host)):
            for name in SIZES:
                file = folder / name
                assert hashlib.sha256(file.read_bytes()).digest() == digests[name], file
                file.unlink()
            if "sftp" in host:
                assert (folder / AWKWARD).read_text() == AWKWARD
    for name in SIZES:
        (bench.here / name).unlink()


@pytest.mark.skipif(bool(WITHOUT_ACCOUNTS), reason=WITHOUT_ACCOUNTS)
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_becoming_somebody_else(bench: Bench, connection: str) -> None:
    # The SSH servers read the keys that may log in as the user who does.
    bench.fleet.home.chmod(0o711)
    bench.run("become.yml", connection, passwords=PASSWORDS)
    for host in bench.hosts(connection):
        assert (bench.back(host) / "of-root").read_text() == f"{host}\n"


@pytest.mark.skipif(not FULL, reason="TEST_CONFORMANCE=1 compares with plain ssh")
def test_names_arrive_that_arrive_over_plain_ssh(bench: Bench) -> None:
    for name in NAMES:
        (bench.here / name).write_text(f"content of {name}")
    arrived: dict[str, dict[str, set[str]]] = {}
    for connection in ("ansible.builtin.ssh", "iotops.tunnel.ssh"):
        bench.run("names.yml", connection, names=NAMES)
        arrived[connection] = {
            host.removeprefix("reference-"): {
                name
                for name in NAMES
                if all(_holds(folder / name, f"content of {name}") for folder in (bench.device(host), bench.back(host)))
            }
            for host in bench.hosts(connection)
        }
    for host, names in arrived["iotops.tunnel.ssh"].items():
        print(f"{host}: cannot carry {sorted(set(NAMES) - names)}")
    assert arrived["iotops.tunnel.ssh"] == arrived["ansible.builtin.ssh"]


def _holds(file: Path, content: str) -> bool:
    return file.is_file() and file.read_text() == content
