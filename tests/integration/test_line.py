# SPDX-License-Identifier: GPL-3.0-or-later
"""A line as TCP finds it: its round trip and its rate; and a tunnel over one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peers.line import Line, Profile
from peers.namespace import why_impossible
from peers.process import REPOSITORY, Process
from peers.service import read_exports

pytestmark = [
    pytest.mark.skipif(bool(why_impossible()), reason=why_impossible()),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="there is no /dev/net/tun"),
]


def test_a_line_has_its_round_trip_and_its_rates(tmp_path: Path) -> None:
    profile = Profile(round_trip=60, down=16, up=8, queue=100)
    traffic = [sys.executable, "-m", "benchmarks.traffic"]
    with (
        Line(profile, tmp_path / "line.log") as line,
        Process([*line.far, *traffic, "serve", line.far_address], tmp_path / "traffic.log") as server,
    ):
        port = server.wait_for_output(r"^(\d+)\n")[1]
        address = f"{line.far_address}:{port}"

        def measured(*arguments: str) -> dict[str, Any]:
            command = [*line.near, *traffic, *arguments]
            done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
            values: dict[str, Any] = json.loads(done.stdout)
            return values

        # A handshake and an echo.
        for seconds in measured("first_byte", address, "3")["seconds"]:
            assert 0.12 <= seconds < 0.3
        # Of 2 and 1 MB/s, a thirtieth is headers.
        assert 1.5e6 < measured("steady", address, "down", "4", "1")["bytes_per_second"] < 2e6
        assert 0.7e6 < measured("steady", address, "up", "4", "1")["bytes_per_second"] < 1e6
    left = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert line.near[3] not in left


@pytest.mark.alone
def test_a_tunnel_is_as_fast_as_a_long_line_and_echoes_are_not_late(tmp_path: Path) -> None:
    """With a window of 128 KiB, 1.3 MB/s would pass, and echoes beside what is sent upwards took 0.65 s."""
    product = [sys.executable, "-m", "tunnelproxy"]
    traffic = [sys.executable, "-m", "benchmarks.traffic"]
    state = ["--state-dir", str(tmp_path / "state")]
    with (
        Line(Profile(round_trip=100, down=40, up=40, queue=200), tmp_path / "line.log") as line,
        Process([*line.far, *traffic, "serve", "127.0.0.1"], tmp_path / "traffic.log") as server,
        Process(
            [*line.near, *product, "service", "run", *state, "--host", line.near_address], tmp_path / "service.log"
        ) as service,
    ):
        service.wait_for_output("ready ")
        printed = subprocess.run([*product, "service", "env", *state], check=True, capture_output=True, text=True)
        environment = {**os.environ, **read_exports(printed.stdout)}

        def run(*command: str) -> dict[str, Any]:
            done = subprocess.run(
                [*line.near, *command], cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True
            )
            values: dict[str, Any] = json.loads(done.stdout)
            return values

        opening = ["iotsecuretunneling", "open-tunnel", "--destination-config", "thingName=t,services=SSH1"]
        tunnel = run("aws", *opening)
        port = server.wait_for_output(r"^(\d+)\n")[1]

        def proxy(end: str, *command: str) -> Process:
            token = {"AWSIOT_TUNNEL_ACCESS_TOKEN": tunnel[f"{end}AccessToken"]}
            return Process(command, tmp_path / f"{end}.log", {**environment, **token})

        with (
            proxy("destination", *line.far, *product, "-d", f"SSH1={port}") as destination,
            proxy("source", *line.near, *product, "-m", "src") as source,
        ):
            destination.wait_for_output("connected to")
            local = source.wait_for_output(r"SSH1: listening on 127.0.0.1:(\d+)")[1]
            for direction in ("down", "up"):
                for connections in ("1", "8"):
                    speed = run(*traffic, "steady", local, direction, "5", connections)["bytes_per_second"]
                    print(f"{connections} {direction}: {speed / 1e6:.2f} MB/s")
                    assert speed > 2.5e6
                bulk = [*line.near, *traffic, "saturate", local, direction, "8"]
                with Process(bulk, tmp_path / "bulk.log"):
                    run(*traffic, "echo", local, "3", "0.02")
                    taken = run(*traffic, "echo", local, "4", "0.02")["seconds"]
                print(f"beside it: {statistics.median(taken) * 1000:.0f} ms")
                assert statistics.median(taken) < 0.4
