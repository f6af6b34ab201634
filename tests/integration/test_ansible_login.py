# SPDX-License-Identifier: GPL-3.0-or-later
"""iotops.tunnel.ssh with passwords: for the login, passed to ssh in both of Ansible's ways, and for become."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from peers.accounts import Accounts, why_impossible
from peers.device import Sshd
from peers.fleet import Fleet

pytestmark = pytest.mark.skipif(bool(why_impossible()), reason=why_impossible() or "possible")

USER, PASSWORD, ROOTS_PASSWORD = "jörg", "geheim ☃ $1'\"", "noch geheimer"
# Before 2.19, ansible-core only supports sshpass, and ignores this setting.
MECHANISMS = ["sshpass", "ssh_askpass"]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    variables = {"ansible_user": USER, "ansible_ssh_extra_args": "-o PubkeyAuthentication=no"}
    with Fleet("device-1", variables=variables) as running:
        device = running.devices["device-1"]
        device.folder.parent.chmod(0o755)
        accounts = Accounts(device.folder / "accounts", {USER: PASSWORD, "root": ROOTS_PASSWORD})
        device.sshd.stop()
        banner = device.folder / "banner"
        banner.write_text("Host key verification failed.\n")
        options = [f"Banner {banner}"]
        device.sshd = Sshd(device.folder, device.ssh_key, device.sshd.host_key, accounts, options=options)
        running.connect_anew("device-1")
        yield running


def identity(
    fleet: Fleet, mechanism: str, *options: str, password: str = PASSWORD, command: str = "id -un", **variables: Any
) -> str:
    """Run whoami on a new connection, and return Ansible's output."""
    fleet.controller.disconnect()
    secrets = fleet.controller.home / "secrets.json"
    secrets.write_text(json.dumps({"ansible_password": password, **variables}))
    run = ["ansible", "device-1", "-m", "ansible.builtin.raw", "-a", command, "-e", f"@{secrets}", *options]
    return fleet.controller.run(*run, ANSIBLE_SSH_PASSWORD_MECHANISM=mechanism).stdout


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_password_logs_in(fleet: Fleet, mechanism: str) -> None:
    said = identity(fleet, mechanism)
    assert "CHANGED" in said, said
    assert USER in said.splitlines()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_reported_with_sshs_message(fleet: Fleet, mechanism: str) -> None:
    said = identity(fleet, mechanism, password="wrong")
    assert "UNREACHABLE" in said
    # ssh writes non-ASCII text according to the locale.
    assert "@device-1: Permission denied" in said or "Invalid/incorrect password" in said


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_password_is_not_sent_to_a_host_with_an_unknown_key(fleet: Fleet, mechanism: str) -> None:
    fleet.controller.known_hosts.write_text("")
    try:
        said = identity(fleet, mechanism)
    finally:
        fleet.trust_host_keys()
    assert "UNREACHABLE" in said
    assert "The SSH host key of device-1 is not known here." in said


def test_a_command_may_exit_with_sshpass_status_for_an_unknown_key(fleet: Fleet) -> None:
    said = identity(fleet, MECHANISMS[0], command="exit 6")
    # ansible-core interprets any status below 7 as sshpass's.
    assert "sshpass error" in said, said
    assert "is not known here" not in said


def test_become_with_a_password(fleet: Fleet) -> None:
    become = ("--become", "--become-method", "ansible.builtin.su")
    said = identity(fleet, MECHANISMS[0], *become, ansible_become_password=ROOTS_PASSWORD)
    assert "CHANGED" in said, said
    assert "root" in said.splitlines()


def test_become_with_a_wrong_password_fails_the_task(fleet: Fleet) -> None:
    become = ("--become", "--become-method", "ansible.builtin.su")
    said = identity(fleet, MECHANISMS[0], *become, ansible_become_password="wrong")
    assert "FAILED" in said
    assert "Incorrect su password" in said
