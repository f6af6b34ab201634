# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib

from tunnelproxy.hub.control_plane import MANAGED_TAGS


def test_the_module_and_the_hub_mark_tunnels_alike() -> None:
    module = importlib.import_module("ansible_collections.iotops.tunnel.plugins.modules.tunnel")
    assert module.OUR_TAGS == MANAGED_TAGS
