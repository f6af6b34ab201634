# SPDX-License-Identifier: GPL-3.0-or-later
"""The diagnosis of this machine, compared with the output of commands."""

from __future__ import annotations

import importlib
import socket
import subprocess

import pytest

PACKAGE = "ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis"

pytestmark = pytest.mark.usefixtures("importable_collection")


def module(name):
    return importlib.import_module(f"{PACKAGE}.{name}")


def test_a_hanging_command_is_killed(monkeypatch):
    reading = module("reading")
    monkeypatch.setattr(reading, "COMMAND_SECONDS", 0.2)
    with pytest.raises(reading.Unavailable, match=r"sleep did not finish within 0\.2 s"):
        reading.run("sleep", "60")


def test_addresses_and_filesystems_match_the_output_of_commands():
    facts = module("network").network([], [])
    told = {each["name"]: each["addresses"] for each in facts["interfaces"]}
    assert "127.0.0.1/8" in told["lo"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        skipped: list[str] = []
        rows = module("network")._listening(skipped)
        assert ("127.0.0.1", listener.getsockname()[1]) in {(row["address"], row["port"]) for row in rows}
    df = subprocess.run(["df", "-k", "--output=size,pcent", "/"], capture_output=True, text=True, check=True).stdout
    size, percent = df.splitlines()[1].split()
    (root,) = [each for each in module("storage").disk()["filesystems"] if each["mount"] == "/"]
    assert root["size_kib"] == int(size)
    # df rounds up.
    assert abs(root["used_percent"] - int(percent.rstrip("%"))) <= 1.1
