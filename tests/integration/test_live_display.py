# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet callback's status display in a process that Ansible forks."""

from __future__ import annotations

import importlib
import os
import select

import pytest

pytestmark = pytest.mark.usefixtures("importable_collection")


def test_a_forked_process_neither_draws_nor_waits_for_a_lock() -> None:
    package = "ansible_collections.iotops.tunnel.plugins.plugin_utils._fleet"
    live_display = importlib.import_module(f"{package}.live_display")
    master, slave = os.openpty()
    display = live_display.LiveDisplay(slave, lambda: None)
    display.draw(["status"])
    with display.suspended():
        os.read(master, 65536)
        child = os.fork()
        if not child:
            with display.suspended():
                pass
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert select.select([master], [], [], 0)[0] == []
    assert b"status" in os.read(master, 65536)
    os.close(slave)
    os.close(master)
