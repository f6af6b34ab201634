# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipelining is on by default, except where sudo requires a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from peers.accounts import Accounts, why_impossible
from peers.device import Sshd
from peers.fleet import Fleet

pytestmark = pytest.mark.skipif(bool(why_impossible()), reason=why_impossible() or "possible")

SUDOERS = "operator ALL=(ALL) NOPASSWD: ALL\n"
DEVICES = {"plain": SUDOERS, "strict": f"Defaults requiretty\n{SUDOERS}", "asking": "operator ALL=(ALL) ALL\n"}
PASSWORD = "secret ☃"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(*DEVICES, variables={"ansible_user": "operator", "ansible_remote_tmp": "~/.ansible/tmp"}) as running:
        for thing, sudoers in DEVICES.items():
            device = running.devices[thing]
            device.folder.parent.chmod(0o755)
            accounts = Accounts(device.folder / "accounts", {"operator": PASSWORD}, sudoers=sudoers)
            device.sshd.stop()
            device.sshd = Sshd(device.folder, device.ssh_key, device.sshd.host_key, accounts)
            running.connect_anew(thing)
        yield running


def run(fleet: Fleet, things: str, *options: str, **environment: str) -> str:
    """Run a module with -vvv, and return all that Ansible prints."""
    command = ["ansible", things, "-m", "ansible.builtin.command", "-a", "id -un", "-vvv", *options]
    return fleet.controller.run(*command, **environment).stdout


def copied(output: str, thing: str) -> bool:
    """Whether a module was copied to a file on the device."""
    return re.search(rf"<[^>]*{thing}[^>]*> PUT ", output) is not None


def became_root(output: str) -> list[str]:
    """The things on which the command ran as root."""
    return sorted(re.findall(r"^(\w+) \| CHANGED \| rc=0 >>\nroot$", output, re.MULTILINE))


def test_without_become_no_module_is_copied(fleet: Fleet) -> None:
    output = run(fleet, "plain,strict")
    assert not copied(output, "plain")
    assert not copied(output, "strict")


def test_a_module_is_copied_where_sudo_requires_a_terminal(fleet: Fleet) -> None:
    for _ in range(2):
        output = run(fleet, "plain,strict", "--become")
        assert became_root(output) == ["plain", "strict"]
        assert not copied(output, "plain")
        assert copied(output, "strict")
    # The devices were asked once.
    assert " -n -u root true" not in output


def test_a_password_for_sudo_is_no_obstacle(fleet: Fleet) -> None:
    secret = fleet.controller.home / "become.json"
    secret.write_text(f'{{"ansible_become_password": "{PASSWORD}"}}')
    output = run(fleet, "asking", "--become", "-e", f"@{secret}")
    assert became_root(output) == ["asking"]
    assert not copied(output, "asking")


@pytest.mark.parametrize("variable", ["ANSIBLE_PIPELINING", "ANSIBLE_SSH_PIPELINING"])
def test_what_the_user_sets_applies(fleet: Fleet, variable: str) -> None:
    output = run(fleet, "plain", "--become", **{variable: "false"})
    assert copied(output, "plain")
    output = run(fleet, "strict", "--become", **{variable: "true"})
    assert not copied(output, "strict")
    assert "must have a tty" in output
