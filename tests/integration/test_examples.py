# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples in the documentation of all plugins: all are parsed and syntax-checked, and most are run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from peers.collection import installed_collection
from peers.fleet import AgentFleet

FOLDERS = {
    "modules": "module",
    "callback": "callback",
    "connection": "connection",
    "filter": "filter",
    "inventory": "inventory",
    "lookup": "lookup",
    "test": "test",
}

# Examples that are run here, in this order, after the tunnels have been opened. Those of other plugins are only
# syntax-checked: they need things that are missing here, such as an AWS account or a VNC server.
RUN = ("iotops.tunnel.health", "iotops.tunnel.tunnel_info", "iotops.tunnel.tunnel")

# ansible-test requires EXAMPLES to be YAML; these are settings, and are parsed differently.
COMMENTS_ONLY = ("iotops.tunnel.fleet",)


@dataclass(frozen=True)
class Example:
    """The examples of one plugin."""

    kind: str
    name: str
    text: str

    def playbook(self) -> list[dict[str, Any]] | None:
        """The examples as plays; None if they are not tasks but, for example, an inventory's configuration."""
        documents = [document for document in yaml.safe_load_all(self.text) if document]
        plays: list[dict[str, Any]] = []
        for document in documents:
            if not isinstance(document, list):
                return None
            tasks = [item for item in document if "hosts" not in item]
            plays += [item for item in document if "hosts" in item]
            if tasks:
                plays.append({"hosts": "devices", "gather_facts": False, "tasks": tasks})
        return plays


def plugins() -> list[tuple[str, str]]:
    """Kind and name of each plugin in the tarball."""
    root = installed_collection().root / "plugins"
    return [
        (kind, f"iotops.tunnel.{path.stem}")
        for folder, kind in FOLDERS.items()
        for path in sorted((root / folder).glob("*.py"))
        if path.stem != "__init__"
    ]


@pytest.fixture(scope="module")
def fleet() -> Iterator[AgentFleet]:
    with AgentFleet("thing-1", "thing-2") as running:
        for device in running.devices.values():
            (device.http.root / "health").write_text("well\n")
        yield running


@pytest.fixture(scope="module")
def examples(fleet: AgentFleet) -> list[Example]:
    found = []
    for kind in FOLDERS.values():
        names = [name for its_kind, name in plugins() if its_kind == kind]
        if names:
            done = fleet.controller.run("ansible-doc", "--json", "-t", kind, *names)
            assert done.returncode == 0, done.stderr
            entries = json.loads(done.stdout)
            found += [Example(kind, name, entries[name].get("examples") or "") for name in names]
    return found


def test_every_plugin_has_examples(examples: list[Example]) -> None:
    assert [example.name for example in examples if not example.text.strip()] == []


def test_every_module_documents_its_check_and_diff_mode(fleet: AgentFleet) -> None:
    names = [name for kind, name in plugins() if kind == "module"]
    entries = json.loads(fleet.controller.run("ansible-doc", "--json", "-t", "module", *names).stdout)
    lacking = [name for name in names if not {"check_mode", "diff_mode"} <= set(entries[name]["doc"]["attributes"])]
    assert lacking == []


def test_the_examples_pass_the_syntax_check(fleet: AgentFleet, examples: list[Example], tmp_path: Path) -> None:
    files = []
    for example in examples:
        if example.name in COMMENTS_ONLY:
            continue
        plays = example.playbook()
        if plays is None:
            configuration = yaml.safe_load(example.text.split("\n---\n")[0])
            assert configuration["plugin"] == example.name, example.text
            continue
        assert plays, f"{example.name} has no example that is a task"
        file = tmp_path / f"{example.kind}-{example.name}.yml"
        file.write_text(yaml.safe_dump(plays, allow_unicode=True))
        files.append(file)
    done = fleet.controller.playbook("--syntax-check", *files)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_run(fleet: AgentFleet, examples: list[Example], tmp_path: Path) -> None:
    """With the callback configured as in its own examples."""
    by_name = {example.name: example for example in examples if example.kind != "connection"}
    (callback,) = set(re.findall(r"ANSIBLE_STDOUT_CALLBACK=(\S+)", by_name["iotops.tunnel.fleet"].text))
    files = []
    for name in RUN:
        files.append(tmp_path / f"{name}.yml")
        files[-1].write_text(yaml.safe_dump(by_name[name].playbook()))
    options = ("-e", "iotops_tunnel_wait=30")
    done = fleet.controller.playbook("iotops.tunnel.open", *files, *options, ANSIBLE_STDOUT_CALLBACK=callback)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"200 after [\d.]+ ms", done.stdout)
    assert "FLEET 2 hosts" in done.stdout
    tunnels = fleet.service.boto3_client().list_tunnels()["tunnelSummaries"]
    assert {tunnel["status"] for tunnel in tunnels} == {"CLOSED"}


def test_the_examples_of_the_connection_plugin_run(fleet: AgentFleet, examples: list[Example], tmp_path: Path) -> None:
    (example,) = [example for example in examples if example.kind == "connection"]
    plays = example.playbook()
    assert plays is not None
    file = tmp_path / "connection.yml"
    # The others use accounts that this machine does not have.
    file.write_text(yaml.safe_dump([play for play in plays if "iotops_tunnel_profile" not in play.get("vars", {})]))
    done = fleet.controller.playbook(file)
    assert done.returncode == 0, done.stdout + done.stderr
