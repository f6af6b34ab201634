# SPDX-License-Identifier: GPL-3.0-or-later
"""Two users of one machine and one device: each has a separate hub and tunnel, and no access to the other's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from peers.agent import AgentProcess
from peers.device import Sshd, make_ssh_key
from peers.service import TunnelingService
from peers.troubleshooting import assert_documented
from peers.user import User, why_impossible

pytestmark = pytest.mark.skipif(bool(why_impossible()), reason=why_impossible())

ALICE, BOB = 61001, 61002


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="users-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[TunnelingService]:
    with ExitStack() as stack:
        running = stack.enter_context(TunnelingService("--mqtt-port", "0"))
        sshd = Sshd(folder / "sshd", make_ssh_key(folder / "key"))
        stack.callback(sshd.stop)
        running.add_thing("pump", folder / "pump", "--services", f"SSH1={sshd.port}")
        stack.enter_context(AgentProcess(folder / "pump"))
        yield running


@pytest.fixture(scope="module")
def users(folder: Path, service: TunnelingService) -> Iterator[tuple[User, User]]:
    authorities = shutil.copytree(service.ca, folder / "ca")
    for path in (authorities, *authorities.iterdir()):
        path.chmod(0o755)
    environment = {name: value.replace(service.ca, str(authorities)) for name, value in service.environment.items()}
    alice, bob = (
        User(number, folder, {**environment, "IOTOPS_TUNNEL_DIR": f"{folder}/home-{number}/hub"})
        for number in (ALICE, BOB)
    )
    yield alice, bob
    for user in (alice, bob):
        user.tunnelproxy("hub", "stop")


def ensure(user: User, **arguments: object) -> Any:
    return user.ask("ensure", "pump", services=["SSH1"], **{"open_policy": "reuse", **arguments})


def owners(service: TunnelingService) -> dict[str, str]:
    client = service.boto3_client()
    opened = [each["tunnelId"] for each in client.list_tunnels(thingName="pump")["tunnelSummaries"]]
    tunnels = {each: client.describe_tunnel(tunnelId=each)["tunnel"] for each in opened}
    return {
        each: next(tag["value"] for tag in tunnels[each]["tags"] if tag["key"] == "iotops:owner") for each in tunnels
    }


def test_each_user_has_a_tunnel_and_sees_no_other(service: TunnelingService, users: tuple[User, User]) -> None:
    rows = [ensure(user) for user in users]
    machine = os.uname().nodename
    assert owners(service) == {
        row["tunnel_id"]: f"{user.number}@{machine}" for row, user in zip(rows, users, strict=True)
    }
    assert rows[0]["hub_pid"] != rows[1]["hub_pid"]
    for row, user in zip(rows, users, strict=True):
        (shown,) = user.ask("status")["tunnels"]
        assert shown["tunnel_id"] == row["tunnel_id"]
        assert os.stat(f"/proc/{row['hub_pid']}").st_uid == user.number
        # The device answers on both.
        assert isinstance(user.ask("open_stream", "pump", "SSH1", account=row["account"]), int)


def test_no_user_can_use_the_hub_of_another(users: tuple[User, User]) -> None:
    alice, bob = users
    ensure(alice)
    theirs = alice.environment["IOTOPS_TUNNEL_DIR"]
    alice.home.chmod(0o755)
    said = ensure(bob, env={"IOTOPS_TUNNEL_DIR": theirs})
    assert_documented("Hub's folder", f"pump cannot be reached: {said}")
    assert "that belongs to you" in bob.tunnelproxy("hub", "status", IOTOPS_TUNNEL_DIR=theirs)
    assert "that belongs to you" in bob.tunnelproxy("hub", "stop", IOTOPS_TUNNEL_DIR=theirs)
    # Nor a folder that another user could read or has prepared.
    prepared = bob.home / "prepared"
    bob.home.chmod(0o755)
    prepared.mkdir()
    os.chown(prepared, BOB, BOB)
    prepared.chmod(0o777)
    for place in (prepared, bob.home / "hub"):
        assert "that belongs to you" in ensure(alice, env={"IOTOPS_TUNNEL_DIR": str(place)})


def test_both_owners_learn_of_a_takeover(service: TunnelingService, users: tuple[User, User]) -> None:
    alice, bob = users
    mine = ensure(alice)["tunnel_id"]
    service.boto3_client().close_tunnel(tunnelId=ensure(bob)["tunnel_id"])
    taken = ensure(bob, open_policy="take_over")
    assert taken["tunnel_id"] == mine
    assert taken["taken_from"].startswith(f"{ALICE}@")
    said = ensure(alice, open_policy="never")
    assert f"{BOB}@" in said
    assert "took over the tunnel of pump" in said
    assert ensure(alice)["tunnel_id"] != mine
