# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet callback's status display in a process that Ansible forks."""

from __future__ import annotations

import importlib
import os
import select

import pytest

pytestmark = pytest.mark.usefixtures("importable_collection")


def drain(terminal: int) -> bytes:
    """Read until nothing more comes for a tenth of a second."""
    data = b""
    while select.select([terminal], [], [], 0.1)[0]:
        data += os.read(terminal, 65536)
    return data


def test_a_forked_process_neither_draws_nor_waits_for_a_lock() -> None:
    package = "ansible_collections.iotops.tunnel.plugins.plugin_utils._fleet"
    live_display = importlib.import_module(f"{package}.live_display")
    master, slave = os.openpty()
    display = live_display.LiveDisplay(slave, lambda: None)
    display.draw(["status"])
    with display.suspended():
        drain(master)
        child = os.fork()
        if not child:
            with display.suspended():
                pass
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert drain(master) == b""
    assert b"status" in drain(master)
    os.close(slave)
    os.close(master)
