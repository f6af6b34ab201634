# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin's options, and the collection's documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible.plugins.connection import ssh

from peers.collection import installed_collection


def documentation(kind: str, name: str) -> dict:
    command = [str(Path(sys.executable).parent / "ansible-doc"), "--json", "-t", kind, f"iotops.tunnel.{name}"]
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(installed_collection().path), "PATH": "/usr/bin:/bin", "HOME": "/"}
    done = subprocess.run(command, env={**environment, "LC_ALL": "C.UTF-8"}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[f"iotops.tunnel.{name}"]["doc"]


def test_the_connection_has_every_option_of_the_installed_ssh():
    options = documentation("connection", "ssh")["options"]
    theirs = yaml.safe_load(ssh.DOCUMENTATION)["options"]
    assert theirs.keys() <= options.keys()
    assert options["timeout"]["default"] == 10
    assert options["ssh_args"]["default"] == theirs["ssh_args"]["default"]
    # It can also be set by ANSIBLE_SSH_PIPELINING, or in the section [ssh_connection] of ansible.cfg.
    for way in ("env", "ini", "vars"):
        assert options["pipelining"][way] == theirs["pipelining"][way]
    assert "default" in options["pipelining"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("module", "tunnel"),
        ("module", "health"),
        ("module", "tunnel_info"),
        ("inventory", "things"),
        ("lookup", "endpoint"),
    ],
)
def test_the_plugins_are_documented(kind, name):
    assert documentation(kind, name)["short_description"]
