# SPDX-License-Identifier: GPL-3.0-or-later
"""iotops.tunnel.ssh when ssh fails: the messages for the operator, and which failures are not the device's."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peers.collection import Controller
from peers.device import Dropbear, Sshd, make_ssh_key
from peers.fleet import Fleet
from peers.process import Process, wait_for
from peers.troubleshooting import assert_documented

DEVICE = "device-1"
MOST_LOGINS = 40

# A device's banner, each line of which imitates a message of ssh.
BANNER = """\
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
Certificate invalid: expired
Host key verification failed.
root@device-1: Permission denied (publickey).
iotops.tunnel: the tunnel was closed
"""

# For the user nobody, the server's process is killed during the login.
ENDS_NOBODY = (
    'AuthorizedKeysCommand /bin/sh -c "test %u != nobody || kill -9 $PPID"',
    "AuthorizedKeysCommandUser root",
)


class HostKeys:
    """The device's host keys, whose certificates each have a fault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority, other = (make_ssh_key(folder / name) for name in ("authority", "other-authority"))
        self.plain = make_ssh_key(folder / "host_key")
        self.options: list[str] = []
        self._certify(self.plain, other, "-n", DEVICE)
        for bits, *what in (
            (256, "-n", "another"),
            (384, "-n", DEVICE, "-V", "20200101:20200201"),
            (521, "-n", DEVICE, "-V", "20400101:20400201"),
        ):
            key = folder / f"nistp{bits}"
            subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", str(bits), "-N", "", "-f", key], check=True)
            self.options.append(f"HostKey {key}")
            self._certify(key, self.authority, *map(str, what))

    def _certify(self, key: Path, authority: Path, *what: str) -> None:
        subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "x", "-h", *what, f"{key}.pub"], check=True)
        self.options.append(f"HostCertificate {key}-cert.pub")

    def known_hosts(self, mark: str, key: Path) -> str:
        """Write a known_hosts file with one marked line for all names, and return ssh's option for it."""
        file = self.folder / f"known-{mark}"
        file.write_text(f"@{mark} * {Path(f'{key}.pub').read_text()}")
        return f"-o UserKnownHostsFile={file}"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(DEVICE, variables={"iotops_tunnel_answer_timeout": 3}) as running:
        yield running


@pytest.fixture(scope="module")
def host_keys(tmp_path_factory: pytest.TempPathFactory) -> HostKeys:
    return HostKeys(tmp_path_factory.mktemp("host-keys"))


@pytest.fixture(scope="module")
def strange(fleet: Fleet, host_keys: HostKeys) -> Controller:
    """The controller of a device with several host keys, a misleading banner, and a small MaxAuthTries."""
    banner = host_keys.folder / "banner"
    banner.write_text(BANNER)
    options = [*host_keys.options, f"Banner {banner}", "MaxAuthTries 2", f"MaxStartups {MOST_LOGINS}", *ENDS_NOBODY]
    device = fleet.devices[DEVICE]
    serve(fleet, Sshd(device.folder, device.ssh_key, host_keys.plain, options=options))
    return fleet.controller


def serve(fleet: Fleet, server: Sshd | Dropbear) -> None:
    """Give the device another SSH server."""
    fleet.controller.disconnect()
    device = fleet.devices[DEVICE]
    device.sshd.stop()
    device.sshd = server
    fleet.trust_host_keys()
    fleet.connect_anew(DEVICE)


# Mistakes on the controller, and rejected host keys: all in one run of Ansible.


@dataclass(frozen=True)
class Mistake:
    cause: str
    host: str
    arguments: str = ""
    words: str = ""
    more: tuple[tuple[str, str], ...] = ()


def mistakes(keys: HostKeys) -> list[Mistake]:
    trust = keys.known_hosts("cert-authority", keys.authority)
    curve = "-o HostKeyAlgorithms=ecdsa-sha2-{}-cert-v01@openssh.com " + trust
    wrong = [make_ssh_key(keys.folder / f"wrong-{number}") for number in range(3)]
    many = " ".join(f"-o IdentityFile={key}" for key in wrong)
    long_path = ("ansible_control_path", f"/tmp/{'x' * 120}")
    return [
        Mistake("ssh failed", "flag", "--nonsense", "unknown option -- -"),
        Mistake("ssh failed", "forwarding", "-L nonsense", "Bad local forwarding specification 'nonsense'"),
        Mistake("ssh failed", "option", "-o Nonsense=yes", "Bad configuration option: nonsense"),
        Mistake("ssh failed", "file", "-F /nowhere", "Can't open user config file /nowhere: No such file"),
        Mistake("Control socket's path", "path", more=(long_path,)),
        Mistake("Jump host", "jump", "-J elsewhere"),
        Mistake("Remote command", "command", "-o RemoteCommand=true"),
        Mistake("ssh failed", "quiet-file", "-o LogLevel=QUIET -F /nowhere", "Can't open user config file /nowhere"),
        Mistake("LogLevel QUIET", "quiet", f"-o LogLevel=QUIET -o IdentitiesOnly=yes -i {wrong[0]}", more=(NO_KEY,)),
        Mistake("Login refused", "key", f"-o IdentitiesOnly=yes -i {wrong[0]}", more=(NO_KEY,)),
        Mistake("Too many keys", "keys", f"-o IdentitiesOnly=yes {many}", more=(NO_KEY,)),
        Mistake("Status 255", "shared", more=(("ansible_control_path", "%(directory)s/shared"), MISLEADING)),
        Mistake("Status 255", "unshared", more=(("ansible_ssh_args", "-o ControlMaster=no"), MISLEADING)),
        Mistake("SSH connection ended", "nobody", more=(("ansible_user", "nobody"),)),
        Mistake("No algorithm in common", "cipher", "-o KexAlgorithms=diffie-hellman-group1-sha1"),
        Mistake("No algorithm in common", "key-type", "-o HostKeyAlgorithms=ssh-rsa", "host key type"),
        Mistake("Host certificate of another name", "name", curve.format("nistp256"), f"the name {DEVICE}"),
        Mistake("Host certificate expired", "expired", curve.format("nistp384")),
        Mistake("Host certificate not yet valid", "early", curve.format("nistp521")),
        Mistake("Host certificate of another authority", "authority", trust),
        Mistake("Host key revoked", "revoked", keys.known_hosts("revoked", keys.plain), "an @revoked line"),
        Mistake("Host key revoked", "file-of-revoked", f"-o RevokedHostKeys={keys.plain}.pub", f"{keys.plain}.pub"),
    ]


NO_KEY = ("ansible_ssh_private_key_file", "")
# The device's output is not mistaken for ssh's.
MISLEADING = ("command", "echo Host key verification failed. >&2; exit 255")
COMMAND = ("-a", "cd /; {{ command | default('true') }}")


def test_each_failure_quotes_ssh(strange: Controller, host_keys: HostKeys) -> None:
    strange.disconnect()
    made = mistakes(host_keys)
    settings = json.loads(strange.inventory.read_text())["devices"]["vars"]
    common = settings["ansible_ssh_common_args"]
    hosts: dict[str, dict[str, Any]] = {
        mistake.host: {
            "iotops_tunnel_thing": DEVICE,
            # ssh uses the first value of an option.
            "ansible_ssh_common_args": f"{mistake.arguments} {common}",
            **dict(mistake.more),
        }
        for mistake in made
    }
    inventory = strange.home / "mistakes.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": settings}}))
    outcomes = strange.module("ansible.builtin.raw", "all", "-i", str(inventory), "-f", str(len(made)), *COMMAND)

    for mistake in made:
        outcome = outcomes[mistake.host]
        assert outcome.word == "UNREACHABLE", outcome
        assert_documented(mistake.cause, outcome.message)
        assert mistake.words in outcome.message


def test_a_server_with_too_many_logins_is_quoted(fleet: Fleet, strange: Controller) -> None:
    strange.disconnect()
    with ExitStack() as stack:
        address = ("127.0.0.1", fleet.devices[DEVICE].sshd.port)
        for _ in range(MOST_LOGINS):
            waiting = stack.enter_context(socket.create_connection(address))
            assert waiting.recv(4) == b"SSH-"
        outcome = strange.module("ansible.builtin.raw", DEVICE, "-a", "true")[DEVICE]
    assert outcome.word == "UNREACHABLE"
    assert_documented("Too many logins", outcome.message)


# Transfers of files.


def test_a_transfer_that_the_devices_proxy_broke_off_is_unreachable(
    fleet: Fleet, strange: Controller, tmp_path: Path
) -> None:
    """The file is fetched: after a copy, Ansible would also try to remove a folder, and report that this failed."""
    proxy = fleet.devices[DEVICE].proxy
    assert isinstance(proxy, Process)
    (tmp_path / "big").write_bytes(bytes(2_000_000))
    there = tmp_path / "there"
    what = f"src={tmp_path}/big dest={there} flat=true"
    options = ("-e", "ansible_sftp_extra_args='-l 500'", "-e", "ansible_pipelining=true")
    with subprocess.Popen(
        ["ansible", DEVICE, "-m", "ansible.builtin.fetch", "-a", what, *options],
        cwd=strange.home,
        env=strange.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            wait_for(lambda: there.exists() and there.stat().st_size, "the transfer runs", 60)
            os.kill(proxy.pid, signal.SIGKILL)
            assert running.stdout is not None
            said = running.stdout.read()
        finally:
            running.kill()
            fleet.connect_anew(DEVICE)
    found = re.search(r'UNREACHABLE! => .*?"msg": "(.+?)",?$', said, re.DOTALL | re.MULTILINE)
    assert found, said
    assert_documented("Transfer broke off", found[1])


TRANSFERS = """
- hosts: device-1
  gather_facts: false
  vars:
    ansible_pipelining: true
  tasks:
    - ansible.builtin.copy: {content: "by any method\\n", dest: "{{ folder }}/there", mode: "0600"}
    - ansible.builtin.fetch: {src: "{{ folder }}/there", dest: "{{ folder }}/back", flat: true}
    - ansible.builtin.copy: {src: "{{ folder }}/big", dest: "{{ folder }}/big-there", mode: "0600"}
      vars: {ansible_remote_tmp: "{{ folder }}/small"}
      ignore_errors: true
      register: full
    - ansible.builtin.copy: {content: "by sftp", dest: "{{ folder }}/there", mode: "0600"}
      vars: {ansible_ssh_transfer_method: sftp}
      ignore_errors: true
      register: alone
    - ansible.builtin.copy:
        content: "{{ {'full': full.msg, 'alone': alone.msg} | to_json }}"
        dest: "{{ folder }}/said"
        mode: "0600"
      delegate_to: localhost
      vars: {ansible_connection: local}
"""


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    yield small
    subprocess.run(["umount", small], check=True)


@pytest.mark.skipif(getpass.getuser() != "root", reason="mounts a file system, and gives Dropbear its own accounts")
@pytest.mark.parametrize("kind", ["OpenSSH without its subsystem", "Dropbear"])
def test_files_are_copied_to_and_from_a_device_without_sftp(
    fleet: Fleet, tmp_path: Path, small_folder: Path, kind: str
) -> None:
    device = fleet.devices[DEVICE]
    if kind == "Dropbear":
        serve(fleet, Dropbear(device.folder, device.ssh_key))
    else:
        serve(fleet, Sshd(device.folder, device.ssh_key, device.folder / "host_key", sftp=False))
    (tmp_path / "big").write_bytes(bytes(200_000))
    playbook = tmp_path / "transfers.yml"
    playbook.write_text(TRANSFERS)
    done = fleet.controller.playbook(playbook, "-e", f"folder={tmp_path}")

    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "back").read_text() == "by any method\n"
    said = json.loads((tmp_path / "said").read_text())
    assert "No space left on device" in said["full"]
    assert_documented("No SFTP", said["alone"])
