# SPDX-License-Identifier: GPL-3.0-or-later
"""The service is killed repeatedly during its work: changes that it has confirmed are still there afterwards."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from peers.service import TunnelingService
from tunnelproxy.service.model import digest

OPERATIONS = 200
KILLS = 5
SEED = 4
LONGEST_LIFE = 0.15


@dataclass
class Told:
    """What a caller knows about a tunnel; None if there was no response."""

    is_open: bool | None = True
    tokens: dict[str, str | None] = field(default_factory=dict)


class Caller:
    """Opens, rotates and closes tunnels at random, and records the responses."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.random = random.Random(SEED)
        self.told: dict[str, Told] = {}
        self.answered = 0

    def act(self) -> None:
        open_ones = [tunnel for tunnel, told in self.told.items() if told.is_open]
        action = self.random.choice(["open", "open", "rotate", "close"]) if open_ones else "open"
        if action == "open":
            answer = self.client.open_tunnel(destinationConfig={"thingName": "pump", "services": ["SSH1"]})
            self.told[answer["tunnelId"]] = Told(tokens=tokens(answer))
        elif action == "rotate":
            tunnel = self.random.choice(open_ones)
            before, self.told[tunnel].tokens = self.told[tunnel].tokens, {"source": None, "destination": None}
            mode = self.random.choice(["SOURCE", "DESTINATION", "ALL"])
            answer = self.client.rotate_tunnel_access_token(tunnelId=tunnel, clientMode=mode)
            self.told[tunnel].tokens = {**before, **tokens(answer)}
        else:
            tunnel = self.random.choice(open_ones)
            self.told[tunnel].is_open = None
            self.client.close_tunnel(tunnelId=tunnel)
            self.told[tunnel].is_open = False
        self.answered += 1


def tokens(answer: dict[str, Any]) -> dict[str, str | None]:
    return {mode: answer[f"{mode}AccessToken"] for mode in ("source", "destination") if f"{mode}AccessToken" in answer}


def check_database(service: TunnelingService, told: dict[str, Told]) -> None:
    with contextlib.closing(sqlite3.connect(service.state_dir / "service.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        valid = (
            "SELECT tunnel_id, count(*), count(DISTINCT mode) FROM access_tokens WHERE NOT revoked GROUP BY tunnel_id"
        )
        tunnels = {row[0] for row in database.execute("SELECT tunnel_id FROM tunnels")}
        assert set(database.execute(valid)) == {(tunnel, 2, 2) for tunnel in tunnels}
        ends = "SELECT tunnel_id, count(DISTINCT mode) FROM ends GROUP BY tunnel_id"
        assert set(database.execute(ends)) == {(tunnel, 2) for tunnel in tunnels}
        good = {row[0] for row in database.execute("SELECT digest FROM access_tokens WHERE NOT revoked")}
    assert set(told) <= tunnels
    known = [token for each in told.values() for token in each.tokens.values() if token is not None]
    assert {digest(token) for token in known} <= good


def check_answers(client: Any, told: dict[str, Told]) -> None:
    described = {tunnel: client.describe_tunnel(tunnelId=tunnel)["tunnel"]["status"] for tunnel in told}
    expected = {
        tunnel: "OPEN" if each.is_open else "CLOSED" for tunnel, each in told.items() if each.is_open is not None
    }
    assert {tunnel: described[tunnel] for tunnel in expected} == expected
    # This settles the outcome of the calls without a response.
    for tunnel, status in described.items():
        told[tunnel].is_open = status == "OPEN"


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_confirmed_changes_survive_kill_9_at_random_moments() -> None:
    kills = 0
    with TunnelingService("-v", "2") as service:
        client = service.boto3_client(
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=5)
        )
        caller = Caller(client)
        while caller.answered < OPERATIONS or kills < KILLS:
            killer = threading.Timer(caller.random.uniform(0, LONGEST_LIFE), service.kill)
            killer.start()
            try:
                while True:
                    caller.act()
            except BotoCoreError:
                kills += 1
            except ClientError as error:
                raise AssertionError(f"refused unexpectedly: {error}") from error
            killer.join()
            service.start()
            check_database(service, caller.told)
            check_answers(client, caller.told)
        (tunnel, told) = next(
            (t, each) for t, each in reversed(caller.told.items()) if each.is_open and all(each.tokens.values())
        )
        with service.connect("source", told.tokens["source"] or "") as source:
            assert source.recv(timeout=10)
            assert client.describe_tunnel(tunnelId=tunnel)["tunnel"]["sourceConnectionState"]["status"] == "CONNECTED"
    assert len(caller.told) > OPERATIONS / 4
