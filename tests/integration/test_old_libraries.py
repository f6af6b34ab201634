# SPDX-License-Identifier: GPL-3.0-or-later
"""Real libraries that are too old, as in some Linux distributions, placed first on Python's path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peers.old_libraries import old_library
from peers.process import REPOSITORY
from tunnelproxy import __version__
from tunnelproxy.hub import client

OLD = {"protobuf": ("3.20.3", "4.25"), "websockets": ("10.4", "14"), "paho-mqtt": ("1.6.1", "2.1")}
COMMANDS = {
    "proxy": ["-m", "src", "-r", "us-east-1"],
    "agent run": ["agent", "run", "--config", "/nowhere/agent.yml"],
    "agent check": ["agent", "check", "--config", "/nowhere/agent.yml"],
    "service run": ["service", "run", "--state-dir", "{folder}", "--api-port", "0", "--data-port", "0"],
    "hub run": ["hub", "run", "--idle-seconds", "0"],
}
# Each command once, and each library with the first command that needs it.
CASES = [
    ("protobuf", "proxy"),
    ("protobuf", "hub run"),
    ("websockets", "proxy"),
    ("websockets", "hub run"),
    ("websockets", "agent check"),
    ("paho-mqtt", "agent run"),
    ("paho-mqtt", "service run"),
]


def run(package: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(old_library(f"{package}=={OLD[package][0]}")),
        "IOTOPS_TUNNEL_DIR": str(folder / "hub"),
        "AWSIOT_TUNNEL_ACCESS_TOKEN": "token",
    }
    command = [sys.executable, "-m", "tunnelproxy", *(part.format(folder=folder) for part in arguments)]
    return subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("package", "command"), CASES)
def test_an_outdated_library_is_reported_in_one_sentence(package: str, command: str, tmp_path: Path) -> None:
    done = run(package, tmp_path, *COMMANDS[command])
    found, needed = OLD[package]
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"error: the Python package {package} {found} is too old, " in done.stderr
    assert f" needs {needed} or newer: {sys.executable} -m pip install --upgrade '{package}>={needed}'" in done.stderr


@pytest.mark.parametrize(("package", "option"), [("protobuf", "--version"), ("websockets", "-V")])
def test_version_works_with_outdated_libraries(package: str, option: str, tmp_path: Path) -> None:
    done = run(package, tmp_path, option)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tunnelproxy {__version__}\n", "")


def test_starting_a_hub_reports_an_outdated_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    monkeypatch.setenv("PYTHONPATH", str(old_library("protobuf==3.20.3")))
    with pytest.raises(client.HubError, match=r"^cannot start the hub: .*protobuf 3.20.3 is too old, .* needs 4.25 or"):
        client.ensure("pump")
