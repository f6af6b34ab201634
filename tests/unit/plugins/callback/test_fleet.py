# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet callback and Ansible's Display."""

from __future__ import annotations

import importlib
import os

import pytest
from ansible.executor.stats import AggregateStats


def test_display_is_given_back_at_the_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = "ansible_collections.iotops.tunnel.plugins"
    fleet = importlib.import_module(f"{plugins}.callback.fleet")
    live_display = importlib.import_module(f"{plugins}.plugin_utils._fleet.live_display")
    master, slave = os.openpty()
    # Without Ansible's start there is no loader for plugins of collections, and no configuration.
    monkeypatch.setattr(fleet.connection_loader, "get", lambda name, class_only: None)
    callback = fleet.CallbackModule()
    callback._plugin_options = {"slowest": 3}
    callback._block = live_display.LiveDisplay(slave, lambda: None)
    callback._print_above_lines(callback._block)
    assert "display" in vars(callback._display)
    callback.v2_playbook_on_stats(AggregateStats())
    assert "display" not in vars(callback._display)
    assert "FLEET 0 hosts" in capsys.readouterr().out
    os.close(slave)
    os.close(master)
