# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands in README.md and docs/ do what the pages say: they are run on one machine, in order."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peers.collection import installed_collection
from peers.device import Device, make_ssh_key
from peers.pages import Block, Shell, blocks_of
from peers.process import REPOSITORY, free_port
from peers.service import TunnelingService

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent


@contextmanager
def machine(home: Path, instead: dict[str, str], prelude: str = "") -> Iterator[Shell]:
    """A machine with everything installed, and a user's shell."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS", "ANSIBLE", "IOTOPS"))
    }
    environment |= {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ANSIBLE_COLLECTIONS_PATH": str(installed_collection().path),
        "ANSIBLE_SSH_COMMON_ARGS": f"-o UserKnownHostsFile={home}/known_hosts -o StrictHostKeyChecking=accept-new",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(home / "cp"),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "IOTOPS_TUNNEL_DIR": str(home / "hub"),
    }
    with Shell(home, environment, instead, prelude) as shell:
        try:
            yield shell
        finally:
            stop = Block(
                "", 0, "sh", 'tunnelproxy hub stop; for path in cp/*; do ssh -O exit -S "$path" x || true; done'
            )
            shell.run(stop)


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path: Unix sockets are below it."""
    return tmp_path_factory.mktemp("d")


def commands(page: str) -> list[Block]:
    """The blocks of a page, except those with a reason not to run them."""
    return [block for block in blocks_of(REPOSITORY / page) if not block.not_run]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_language(page: Path) -> None:
    blocks = blocks_of(page)
    assert len(blocks) * 2 == len(re.findall(r"^```", page.read_text(), re.MULTILINE))
    unknown = [f"{page.name}, line {block.line}" for block in blocks if not block.kind]
    assert unknown == [], "write sh, text, yaml … after the fence; before a sh that is not run, <!-- not run: why -->"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_is_valid_and_links_are_not_broken(page: Path) -> None:
    for block in blocks_of(page):
        if block.kind == "json":
            json.loads(block.text)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} names {target}"


def test_every_page_with_commands_is_tested() -> None:
    run_below = {"README.md", "agent.md", "service.md"}
    with_commands = {page.name for page in PAGES if any(b.kind == "sh" and not b.not_run for b in blocks_of(page))}
    assert with_commands == run_below, "run the new page in a test below, or mark its blocks"


@pytest.mark.nightly
def test_the_quick_start(home: Path) -> None:
    key = make_ssh_key(home / "key")
    with TunnelingService() as unused:  # a device wants one; the page's commands start its own
        hardware = Device("hardware", unused, home / "device", key)
    addresses = f"SSH1={hardware.sshd.port},HTTP1={hardware.http.port}"
    instead = {
        "HOST": "127.0.0.1",
        "8443": str(free_port()),
        "8444": str(free_port()),
        "8883": "0",
        "add-thing sensor-7": f"add-thing sensor-7 --services {addresses}",
        "/etc/ssh/ssh_host_ed25519_key": str(hardware.sshd.host_key),
        "ansible_user=admin": f"ansible_user={hardware.ssh_user}\nansible_ssh_private_key_file={key}",
    }
    with hardware, machine(home, instead) as shell:
        printed = "".join(shell.run(block) for block in commands("README.md"))
    assert hardware.sshd.host_key_line("sensor-7") in printed
    assert printed.count('"ping": "pong"') == 1
    assert printed.count("connected     connected     200") == 1
    assert re.search(r"HTTP1 +http://sensor-7\.localhost:\d+/", printed)


def test_the_agent_page(home: Path) -> None:
    with machine(home, {"tunnels.example.com": "127.0.0.1", "8883": "0"}) as shell:
        for block in commands("docs/agent.md"):
            shell.run(block)
    assert (home / "pump-7" / "agent.yml").exists()


def test_the_service_page(home: Path) -> None:
    """The page's function for the service's user is replaced with one for this user."""
    with machine(home, {}, 'tunneling() { tunnelproxy service "$@"; }\n') as shell:
        shell.stay("tunnelproxy service run --host 127.0.0.1", "ready")
        printed = "".join(shell.run(block) for block in commands("docs/service.md"))
    assert "aws_access_key_id" in printed
    assert "export AWS_ACCESS_KEY_ID=" in printed
