# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of ssh that the connection has."""

from __future__ import annotations

import importlib

import yaml
from ansible.plugins.connection import ssh


def without_releases(value):
    if isinstance(value, dict):
        return {
            key: without_releases(item) for key, item in value.items() if key not in ("version_added", "deprecated")
        }
    return [without_releases(item) for item in value] if isinstance(value, list) else value


def test_the_options_are_those_of_ssh_without_its_releases():
    fragment = importlib.import_module(
        "ansible_collections.iotops.tunnel.plugins.doc_fragments.ssh"
    ).ModuleDocFragment()
    theirs = yaml.safe_load(ssh.DOCUMENTATION)["options"]
    assert yaml.safe_load(fragment.DOCUMENTATION) == {"options": without_releases(theirs)}
