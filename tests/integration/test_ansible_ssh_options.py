# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the connection plugin in Ansible's workers, which avoid reading them again for each task."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from peers.collection import PYTHON, installed_collection

# Reads the connection's options in a worker, then in its parent, and prints for both how often Ansible read the
# documentation for them, and whether the plugin was already loaded.
READ_OPTIONS = """
import json, multiprocessing, sys
from ansible import constants
from ansible.playbook.play_context import PlayContext
from ansible.plugins import loader

loader.init_plugin_loader()
if sys.argv[1] == "playbook":
    list(loader.connection_loader.all(class_only=True))
elif sys.argv[1] == "loaded":
    loader.connection_loader.get("iotops.tunnel.ssh", class_only=True)
original, read = loader.add_fragments, []

def add_fragments(doc, path, **arguments):
    read.append(path)
    return original(doc, path, **arguments)

def options():
    read.clear()
    loaded = "ansible_collections.iotops.tunnel.plugins.connection.ssh" in sys.modules
    connection = loader.connection_loader.get("iotops.tunnel.ssh", PlayContext())
    definitions = constants.config.get_configuration_definitions("connection", connection._load_name)
    return [definitions, sum("iotops/tunnel/plugins/connection" in path for path in read), loaded]

def work(pipe):
    pipe.send(json.loads(json.dumps(options())))

loader.add_fragments = add_fragments
fork = multiprocessing.get_context("fork")
ours, theirs = fork.Pipe()
worker = fork.Process(target=work, args=(theirs,))
worker.start()
theirs.close()
print(json.dumps([ours.recv(), options()]))
worker.join()
"""


def run(script: str, *arguments: str, collections: Path) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "ANSIBLE_HOME": str(collections / "home"),
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "LC_ALL": "C.UTF-8",
    }
    command = [PYTHON, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def values(definitions: dict[str, dict]) -> dict[str, dict]:
    """The options without their descriptions, and without the details of ansible-core's releases."""

    def bare(value: object) -> object:
        if isinstance(value, dict):
            prose = ("description", "version_added", "version_added_collection", "deprecated")
            return {key: bare(item) for key, item in value.items() if key not in prose}
        return [bare(item) for item in value] if isinstance(value, list) else value

    return {name: bare(fields or {}) for name, fields in definitions.items()}


@pytest.mark.parametrize("command", ["ad-hoc", "playbook"])
def test_a_worker_has_the_options_that_ansible_reads_from_the_documentation(command):
    worker, parent = json.loads(run(READ_OPTIONS, command, collections=installed_collection().path))
    assert values(worker[0]) == values(parent[0])
    assert worker[0]["host"]["vars"] == [{"name": "inventory_hostname"}]
    assert (worker[1:], parent[1:]) == ([0, False], [1, False])


def test_a_worker_inherits_what_its_parent_has_loaded():
    worker, parent = json.loads(run(READ_OPTIONS, "loaded", collections=installed_collection().path))
    assert worker[0] == parent[0]
    assert (worker[1:], parent[1:]) == ([0, True], [0, True])
