# SPDX-License-Identifier: GPL-3.0-or-later
"""For how long an SSH connection is kept for later tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from peers.fleet import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("gw") as running:
        yield running


def kept_seconds(fleet: Fleet, **environment: str) -> list[str]:
    """Run a task on a new connection, and return what ssh was told about keeping it."""
    fleet.controller.disconnect()
    output = fleet.controller.run("ansible", "gw", "-m", "ansible.builtin.ping", "-vvv", **environment).stdout
    return sorted(set(re.findall(r" EXEC .*ssh .*ControlPersist=(\w+)", output)))


def test_a_connection_is_kept_longer_once_the_device_is_known_to_allow_several(fleet: Fleet) -> None:
    fleet.controller.run("ansible", "gw", "-m", "ansible.builtin.ping")
    assert kept_seconds(fleet) == ["600s"]
    assert kept_seconds(fleet, ANSIBLE_SSH_ARGS="-o ControlMaster=auto -o ControlPersist=60s") == ["60s"]
