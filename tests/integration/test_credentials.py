# SPDX-License-Identifier: GPL-3.0-or-later
"""Control calls use the caller's current credentials, from every source that botocore supports.

For each source: its keys are used, replaced while the hub runs (and the old ones removed), and used again; then the
source fails, with its own message. The service's audit log shows which keys a call was made with.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from peers.credentials import (
    SOURCES,
    AssumedRole,
    CredentialProcess,
    Profile,
    Source,
    StaticKeys,
    add_keys,
    remove_keys,
    without_keys,
)
from peers.fleet import AgentFleet
from tunnelproxy.hub import client
from tunnelproxy.hub.client import Caller, HubError

NO_NETWORK_FAULT = ("wrong-credentials", "no-permission")


@pytest.fixture(scope="module")
def fleet() -> Iterator[AgentFleet]:
    with AgentFleet("pump") as running:
        running.controller.environment = without_keys(running.controller.environment)
        yield running


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This module's own hub, which all its callers share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path_factory.mktemp("hub")))
        yield
        client.stop()


@pytest.fixture(params=SOURCES, ids=lambda kind: kind.name)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    with request.param(tmp_path / "home") as ready:
        yield ready


def environment_of(fleet: AgentFleet, source: Source) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS")}
    return {**ours, **without_keys(fleet.service.environment), **source.environment()}


def list_tunnels(environment: Mapping[str, str], directory: Path) -> None:
    caller = Caller(environment=environment, directory=str(directory), python=sys.executable, verify=True)
    client.call("list_tunnels", {"maxResults": 1}, purpose="list tunnels", caller=caller)


def last_key(fleet: AgentFleet, operation: str) -> str:
    """The name of the key with which the last call of an operation was made."""
    lines = map(json.loads, (fleet.service.state_dir / "audit.log").read_text().splitlines())
    names = [line["key"] for line in lines if line.get("operation") == operation and line["outcome"] == "ok"]
    return str(names[-1])


def hub_pid() -> int:
    pid: int = (client.status() or {})["pid"]
    return pid


def test_credentials_are_used_replaced_and_explained_when_they_fail(
    fleet: AgentFleet, hub: None, source: Source, tmp_path: Path
) -> None:
    for turn in ("first", "second"):
        keys = add_keys(fleet.service, f"{source.name.replace(' ', '-')}-{turn}")
        source.use(keys)
        list_tunnels(environment_of(fleet, source), tmp_path)
        assert last_key(fleet, "ListTunnels") == keys.name
        remove_keys(fleet.service, keys)

    with pytest.raises(HubError) as refused:
        list_tunnels(environment_of(fleet, source), tmp_path)
    assert refused.value.code == "wrong-credentials"
    assert re.search(r"^Could not list tunnels: .*not accepted", refused.value.message)

    pid = hub_pid()
    source.break_it()
    with pytest.raises(HubError) as broken:
        list_tunnels(environment_of(fleet, source), tmp_path)
    print(source.name, "->", broken.value.message)
    assert broken.value.code in NO_NETWORK_FAULT
    assert re.search(rf"(?s)^Could not list tunnels: .*{source.words}", broken.value.message)
    assert hub_pid() == pid


def test_a_repaired_source_is_used_by_the_next_call(
    fleet: AgentFleet, hub: None, source: Source, tmp_path: Path
) -> None:
    source.use(keys := add_keys(fleet.service, f"{source.name.replace(' ', '-')}-again"))
    source.break_it()
    with pytest.raises(HubError):
        list_tunnels(environment_of(fleet, source), tmp_path)
    source.use(keys)
    list_tunnels(environment_of(fleet, source), tmp_path)
    assert last_key(fleet, "ListTunnels") == keys.name


def test_a_role_that_requires_an_mfa_code_fails_without_a_prompt(fleet: AgentFleet, hub: None, tmp_path: Path) -> None:
    role = AssumedRole(tmp_path / "home")
    with role:
        role.use(add_keys(fleet.service, "mfa"))
        role.want_mfa_code()
        with pytest.raises(HubError) as refused:
            list_tunnels(environment_of(fleet, role), tmp_path)
    assert refused.value.code == "wrong-credentials"
    assert re.search(r"field-role.*MFA", refused.value.message)


def test_a_role_is_assumed_without_a_writable_home_folder(fleet: AgentFleet, hub: None, tmp_path: Path) -> None:
    with AssumedRole(tmp_path / "home") as role:
        role.use(keys := add_keys(fleet.service, "read-only"))
        # No user can create a folder here, as in an execution environment without a home folder.
        (role.aws / "cli").touch()
        list_tunnels(environment_of(fleet, role), tmp_path)
    assert last_key(fleet, "ListTunnels") == keys.name


def test_without_a_region_the_remedies_are_named(fleet: AgentFleet, hub: None, tmp_path: Path) -> None:
    with StaticKeys(tmp_path / "home") as source:
        source.use(add_keys(fleet.service, "no-region"))
        environment = environment_of(fleet, source)
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            del environment[name]
        with pytest.raises(HubError) as refused:
            list_tunnels(environment, tmp_path)
    assert refused.value.code == "wrong-region"
    assert re.search(r"AWS_REGION.*service env", refused.value.message)


def test_another_credentials_file_is_used_once_the_environment_names_it(
    fleet: AgentFleet, hub: None, tmp_path: Path
) -> None:
    """Nothing of an earlier caller remains, although hub, region and profile are the same."""
    for user in ("anna", "bert"):
        with Profile(tmp_path / user) as source:
            source.use(keys := add_keys(fleet.service, user))
            named = {"HOME": str(tmp_path), "AWS_SHARED_CREDENTIALS_FILE": str(source.aws / "credentials")}
            list_tunnels({**environment_of(fleet, source), **named}, tmp_path)
            assert last_key(fleet, "ListTunnels") == keys.name


def test_a_credential_process_runs_in_the_callers_directory(fleet: AgentFleet, hub: None, tmp_path: Path) -> None:
    with CredentialProcess(tmp_path / "home") as source:
        source.use(keys := add_keys(fleet.service, "in-a-directory"))
        (source.aws / "config").write_text("[profile vault]\ncredential_process = './print credentials'\n")
        list_tunnels(environment_of(fleet, source), source.home)
        assert last_key(fleet, "ListTunnels") == keys.name
        with pytest.raises(HubError):
            list_tunnels(environment_of(fleet, source), tmp_path)


@pytest.mark.parametrize(
    "task",
    [
        "ansible.builtin.raw: echo well",
        "ansible.builtin.debug: {msg: \"{{ lookup('iotops.tunnel.endpoint', 'HTTP1') }}\"}",
        "iotops.tunnel.tunnel:",
    ],
    ids=["connection", "lookup", "module"],
)
def test_a_tasks_environment_does_not_affect_programs_on_the_controller(
    fleet: AgentFleet, tmp_path: Path, task: str
) -> None:
    """It is meant for the device, and may contain the device's data."""
    ran, theirs, ours = tmp_path / "ran", tmp_path / "theirs", tmp_path / "ours"
    with CredentialProcess(tmp_path / "home") as source:
        source.use(add_keys(fleet.service, f"path-{len(task)}"))
        (source.aws / "config").write_text("[profile vault]\ncredential_process = printer\n")
        for folder, first in ((theirs, f"touch {ran}"), (ours, ":")):
            folder.mkdir()
            (folder / "printer").write_text(f"#!/bin/sh\n{first}\nexec '{source.home}/print credentials'\n")
            (folder / "printer").chmod(0o755)
        (theirs / "botocore.py").write_text(f"open({str(ran)!r}, 'w')\n")
        (tmp_path / "play.yml").write_text(f"""
- hosts: pump
  gather_facts: false
  tasks:
    - {task}
      environment: {{PATH: "{theirs}:/usr/bin:/bin", PYTHONPATH: {theirs}, https_proxy: "http://127.0.0.1:9"}}
""")
        environment = {**source.environment(), "PATH": f"{ours}:{fleet.controller.environment['PATH']}"}
        done = fleet.controller.playbook(tmp_path / "play.yml", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not ran.exists()


def test_a_program_that_prompts_finds_its_input_closed(fleet: AgentFleet, hub: None, tmp_path: Path) -> None:
    with CredentialProcess(tmp_path / "home") as source:
        source.use(keys := add_keys(fleet.service, "asks"))
        program = source.home / "print credentials"
        asks = "if read -r answer; then echo somebody answered >&2; exit 4; fi"
        program.write_text(program.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{asks}\n"))
        list_tunnels(environment_of(fleet, source), tmp_path)
        assert last_key(fleet, "ListTunnels") == keys.name


@pytest.mark.parametrize("kind", [StaticKeys, Profile, CredentialProcess], ids=lambda kind: kind.name)
def test_a_device_is_reached_with_replaced_credentials(fleet: AgentFleet, kind: type[Source], tmp_path: Path) -> None:
    with kind(tmp_path / "home") as source:

        def raw() -> str:
            fleet.controller.disconnect()
            done = fleet.controller.run("ansible", "pump", "-m", "raw", "-a", "echo well", **source.environment())
            return done.stdout + done.stderr

        for turn in ("first", "second"):
            keys = add_keys(fleet.service, f"raw-{source.name}-{turn}")
            source.use(keys)
            fleet.close_tunnels()
            assert "pump | CHANGED | rc=0" in (said := raw()), said
            assert last_key(fleet, "OpenTunnel") == keys.name
            remove_keys(fleet.service, keys)

        source.break_it()
        fleet.close_tunnels()
        said = raw()
        assert "pump | UNREACHABLE!" in said
        assert re.search(rf"(?s){source.words}", said), said
        assert fleet.tunnels() == {"pump": []}
