# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's allow list, in a separate network namespace."""

from __future__ import annotations

import subprocess
import sys

import pytest

from peers.namespace import why_impossible
from peers.process import REPOSITORY


def test_a_name_that_resolves_to_a_link_local_address_of_this_device_is_refused() -> None:
    """Anyone who answers name queries on the network (mDNS) can send such an address, which has a scope."""
    if why_impossible():
        pytest.skip(why_impossible())
    ask = """
from tunnelproxy.proxy.addresses import TcpAddress
from tunnelproxy.agent.allow_list import AllowList
allow = AllowList.parse(["plc.local:80"], "allow")
print(*(allow.permits_at(TcpAddress("plc.local", 80), found) for found in ("fe80::77", "fe80::78")))
"""
    network = (
        "ip link add lan type veth peer name far && ip link set lan up && ip link set far up && "
        "ip address add fe80::77/64 dev lan nodad"
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f'{network} && exec "$@"', "sh", sys.executable, "-c", ask],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]
