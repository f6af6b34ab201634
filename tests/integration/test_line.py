# SPDX-License-Identifier: GPL-3.0-or-later
"""A line as TCP finds it: its round trip and its rate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peers.line import Line, Profile
from peers.namespace import why_impossible
from peers.process import REPOSITORY, Process

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
