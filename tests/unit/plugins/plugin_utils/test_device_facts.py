# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts that no device may set."""

from __future__ import annotations

import importlib
import re
import time

import pytest
import yaml
from ansible.plugins.connection import ssh
from ansible.plugins.loader import connection_loader
from ansible.vars import clean

from peers.process import REPOSITORY

PACKAGE = "ansible_collections.iotops.tunnel.plugins"


@pytest.fixture(scope="module")
def device_facts():
    return importlib.import_module(f"{PACKAGE}.plugin_utils._device_facts")


def refusal(device_facts, **facts) -> str:
    """What is said of these facts; empty if they are fine."""
    try:
        device_facts.refuse_device_facts(facts, "valve-1")
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "name",
    [
        "iotops_tunnel_thing",
        "iotops_tunnel_anything",
        "groups",
        "hostvars",
        "playbook_dir",
        "role_path",
        "play_hosts",
        "search_path",
        "delegated_vars",
        "omit",
        "lookup",
        "sftp_executable",
        "host_key_checking",
    ],
)
def test_a_fact_that_decides_something_is_refused_by_name(device_facts, name):
    said = refusal(device_facts, distribution="Debian", **{name: "x"})
    assert said.startswith(f"valve-1 has facts that no device may set: {name}. ")
    assert "meta: clear_facts" in said


def test_what_devices_really_say_is_fine(device_facts):
    usual = ("distribution", "env", "default_ipv4", "services", "packages", "discovered_interpreter_python", "version")
    # ansible-core makes one called ansible_facts of the interpreter that it found for a delegated task.
    assert refusal(device_facts, **dict.fromkeys((*usual, "facts", "ssh_host_key_rsa_public", "local"), "x")) == ""
    device_facts.refuse_device_facts(None, "valve-1")
    device_facts.refuse_device_facts({}, "valve-1")


def test_what_the_item_before_has_said_counts(device_facts):
    """As ansible-core has it in a loop."""
    assert "set: iotops_tunnel_thing. " in refusal(device_facts, ansible_facts={"iotops_tunnel_thing": "pump"})
    assert refusal(device_facts, ansible_facts={"distribution": "Debian"}) == ""


def test_a_host_that_names_itself_is_not_called_so(device_facts):
    assert refusal(device_facts, inventory_hostname="valve-1").startswith("This host has facts")


def test_names_that_a_device_chose_cannot_paint_or_flood_the_terminal(device_facts):
    names = {f"iotops_tunnel_{number}\x1b[31m{'x' * 1000}": 1 for number in range(100)}
    said = refusal(device_facts, **names)
    assert "\x1b" not in said
    assert "and 95 more" in said
    assert len(said) < 1000


def test_a_thousand_facts_cost_little(device_facts):
    facts = {f"fact_{number}": number for number in range(1000)}
    began = time.perf_counter()
    for _ in range(100):
        device_facts.refuse_device_facts(facts, "valve-1")
    assert (time.perf_counter() - began) / 100 < 0.005


def test_each_option_of_the_connection_is_refused_here_or_by_ansible_core(device_facts, monkeypatch):
    """Options that later releases of ansible-core have, too."""
    monkeypatch.setattr(clean.display, "warning", lambda *_, **__: None)
    source = (REPOSITORY / "plugins" / "connection" / "ssh.py").read_text()
    own = re.search(r'DOCUMENTATION = r"""(.*?)"""', source, re.DOTALL)
    assert own
    names = {
        variable["name"]
        for documentation in (own[1], ssh.DOCUMENTATION)
        for option in yaml.safe_load(documentation)["options"].values()
        for variable in option.get("vars", ())
    }
    assert connection_loader.find_plugin("ssh")
    # The last are no variables, but ways into one.
    left = {name for name in clean.clean_facts(dict.fromkeys(names - {"ansible_facts"}, 1)) if name.isidentifier()}
    let_through = {name for name in left if not refusal(device_facts, **{name.removeprefix("ansible_"): 1})}
    assert let_through == set()
