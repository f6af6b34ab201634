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


def ansible_doc(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "ansible-doc"), *arguments]
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(installed_collection().path), "PATH": "/usr/bin:/bin", "HOME": "/"}
    done = subprocess.run(
        command, env={**environment, "LC_ALL": "C.UTF-8"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def documentation(kind: str, name: str) -> dict:
    return json.loads(ansible_doc("--json", "-t", kind, f"iotops.tunnel.{name}"))[f"iotops.tunnel.{name}"]["doc"]


def test_the_connection_has_every_option_of_the_installed_ssh():
    options = documentation("connection", "ssh")["options"]
    theirs = yaml.safe_load(ssh.DOCUMENTATION)["options"]
    assert theirs.keys() <= options.keys()
    assert options["timeout"]["default"] == 10
    assert options["ssh_args"]["default"] == theirs["ssh_args"]["default"]
    # It can also be set by ANSIBLE_SSH_PIPELINING, or in the section [ssh_connection] of ansible.cfg.
    for way in ("env", "ini", "vars"):
        assert options["pipelining"][way] == theirs["pipelining"][way]
    assert options["pipelining"]["default"] is True


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("module", ["check_facts", "diagnose", "health", "tunnel", "tunnel_info"]),
        ("connection", ["ssh"]),
        ("inventory", ["things"]),
        ("lookup", ["endpoint"]),
        ("callback", ["fleet"]),
    ],
)
def test_ansible_doc_shows_each_plugin(kind, names):
    # As text: with --json, ansible-doc does not check that descriptions are strings.
    shown = ansible_doc("-t", kind, *(f"iotops.tunnel.{name}" for name in names))
    for name in names:
        assert f"iotops.tunnel.{name}" in shown
