# SPDX-License-Identifier: GPL-3.0-or-later
"""Neither Ansible's most verbose output, nor command lines, nor the hub's output contain tokens or keys."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peers.fleet import Fleet

PLAYBOOK = """
- hosts: devices
  gather_facts: false
  vars:
    iotops_tunnel_access_key: "{{ lookup('env', 'THE_KEY') }}"
    iotops_tunnel_secret_key: "{{ lookup('env', 'THE_SECRET') }}"
  module_defaults:
    group/iotops.tunnel.aws:
      access_key: "{{ lookup('env', 'THE_KEY') }}"
      secret_key: "{{ lookup('env', 'THE_SECRET') }}"
      region: "{{ lookup('env', 'THE_REGION') }}"
  tasks:
    - iotops.tunnel.tunnel:
        rotate: source
    - iotops.tunnel.tunnel:
      environment:
        AWS_SECRET_ACCESS_KEY: "{{ lookup('env', 'THE_SECRET') }}"
        AWS_ACCESS_KEY_ID: "{{ lookup('env', 'THE_KEY') }}"
    - ansible.builtin.ping:
    - iotops.tunnel.health:
"""


class CommandLines:
    """Records the command lines of all processes on this machine."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._done = threading.Event()

    @contextmanager
    def spawn(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("device-1") as running:
        yield running


def secrets_of(fleet: Fleet) -> set[str]:
    """All secrets: the AWS keys, the tokens of both ends, and the hub's client token."""
    held = json.loads((fleet.controller.home / "hub" / "tunnels.jsonl").read_text())
    found = {value for text in _strings(held) for value in [text[1]] if text[0] in ("source_token", "client_token")}
    assert len(found) == 2
    found.add((fleet.home / "tokens" / "device-1").read_text())
    environment = fleet.service.environment
    return found | {environment["AWS_SECRET_ACCESS_KEY"], environment["AWS_ACCESS_KEY_ID"]}


def _strings(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, name)
    elif isinstance(value, str):
        yield name, value


@pytest.mark.parametrize("debug", ["0", "1"])
def test_no_secret_is_shown(fleet: Fleet, tmp_path: Path, debug: str) -> None:
    playbook = tmp_path / "work.yml"
    playbook.write_text(PLAYBOOK)
    environment = fleet.service.environment
    secrets = secrets_of(fleet)
    lines = CommandLines()
    with lines.spawn():
        done = fleet.controller.playbook(
            playbook,
            "-vvvvv",
            ANSIBLE_DEBUG=debug,
            AWS_ACCESS_KEY_ID="",
            AWS_SECRET_ACCESS_KEY="",
            THE_KEY=environment["AWS_ACCESS_KEY_ID"],
            THE_SECRET=environment["AWS_SECRET_ACCESS_KEY"],
            THE_REGION=environment["AWS_REGION"],
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(b"connector.py" in line for line in lines.seen)
    secrets |= secrets_of(fleet)

    places = {
        "Ansible's output": done.stdout + done.stderr,
        "command lines": b"\n".join(lines.seen).decode(errors="replace"),
        "hub status": fleet.controller.hub("status") + fleet.controller.hub("status", "--json"),
        "hub log": (fleet.controller.home / "hub" / "hub.log").read_text(),
    }
    shown = [(place, secret) for place, text in places.items() for secret in secrets if secret in text]
    assert [(place, len(secret)) for place, secret in shown] == []


def test_no_file_with_a_secret_is_left_or_open_to_others(fleet: Fleet) -> None:
    secrets = [secret.encode() for secret in secrets_of(fleet)]
    for path in fleet.controller.home.rglob("*"):
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets):
            assert path.name == "tunnels.jsonl"
            assert path.stat().st_mode & 0o077 == 0
