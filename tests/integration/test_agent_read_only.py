# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent whose state directory cannot be written still serves tunnels."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peers.agent import AgentProcess
from peers.full_disk import SmallDisk, why_impossible
from peers.process import REPOSITORY, wait_for
from peers.service import TunnelingService

pytestmark = pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())


def open_and_await(service: TunnelingService, agent: AgentProcess) -> str:
    """Open a tunnel to the agent's thing, and wait until it has joined."""
    client = service.boto3_client()
    tunnel_id: str = client.open_tunnel(destinationConfig={"thingName": "pump", "services": ["SSH1"]})["tunnelId"]
    wait_for(lambda: is_joined(service, tunnel_id), f"the agent has joined {tunnel_id}: {agent.output()}")
    return tunnel_id


def is_joined(service: TunnelingService, tunnel_id: str) -> bool:
    tunnel = service.boto3_client().describe_tunnel(tunnelId=tunnel_id)["tunnel"]
    return bool(tunnel["destinationConnectionState"]["status"] == "CONNECTED")


def test_it_joins_tunnels_and_saves_them_once_it_can(tmp_path: Path) -> None:
    with TunnelingService("--mqtt-port", "0") as service, SmallDisk(tmp_path / "state") as state:
        service.add_thing("pump", tmp_path / "pump", "--services", "SSH1=22")
        configuration = tmp_path / "pump" / "agent.yml"
        configuration.write_text(re.sub("(?m)^state_dir:.*\n", "", configuration.read_text()))
        with configuration.open("a") as file:
            file.write(f"state_dir: {state.path}\n")
        state.remount("ro")
        with AgentProcess(tmp_path / "pump") as agent:
            assert f"cannot write in {state.path}; its file system is read-only" in agent.output()
            first = open_and_await(service, agent)
            assert agent.count("cannot save the tunnels") == 1
            state.remount("rw")
            second = open_and_await(service, agent)
            saved = wait_for((state.path / "tunnels.json").exists, "they are saved")
            assert saved
            assert len(json.loads((state.path / "tunnels.json").read_text())) == 2
            assert agent.count("the tunnels are saved in") == 1
            agent.stop()
            agent.start()
            for tunnel_id in (first, second):
                wait_for(lambda tunnel_id=tunnel_id: is_joined(service, tunnel_id), f"it is back in {tunnel_id}")
        state.remount("ro")
        command = [sys.executable, "-m", "tunnelproxy", "agent", "check", "--config", configuration]
        checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert f"cannot write in {state.path}; its file system is read-only" in checked.stderr
