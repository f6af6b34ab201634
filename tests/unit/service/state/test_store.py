# SPDX-License-Identifier: GPL-3.0-or-later
"""What the store keeps, and in which form."""

from __future__ import annotations

import re
import sqlite3
import stat
from pathlib import Path

import pytest

from tunnelproxy.outage import Outage
from tunnelproxy.service.errors import ServiceError, StoreError
from tunnelproxy.service.model import AccessKey, Mode, NewTunnel, Thing, digest, new_access_token, new_key_pair
from tunnelproxy.service.state.schema import _VERSION_1
from tunnelproxy.service.state.store import Store

NOW = 1_700_000_000.5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "service.db"


def digests(store: Store) -> dict[Mode, bytes]:
    return {mode: digest(new_access_token()) for mode in Mode}


def test_a_tunnel_survives_a_restart(path: Path) -> None:
    store = Store(path)
    new = NewTunnel("a description", "pump", ("SSH1", "HTTP1"), 60, (("owner", "me"),))
    opened = store.open_tunnel(new, digests(store), NOW)
    identity, keys = store.identity(), store.keys()
    store.close()

    again = Store(path)
    assert again.find_tunnel(opened.tunnel_id) == opened
    assert opened.expires_at == NOW + 3600
    assert again.tags(opened.tunnel_id) == [("owner", "me")]
    assert (again.identity(), again.keys()) == (identity, keys)


def test_a_region_that_is_set_stays(path: Path) -> None:
    store = Store(path)
    account = store.identity().account_id
    assert store.identity().region == "us-east-1"
    store.set_region("eu-central-1")
    store.close()
    identity = Store(path).identity()
    assert (identity.account_id, identity.region) == (account, "eu-central-1")
    assert identity.arn("t") == f"arn:aws:iot:eu-central-1:{account}:tunnel/t"


def test_keys_look_like_those_of_aws_and_are_not_shown(path: Path) -> None:
    (key,) = Store(path).keys()
    credentials = key.credentials
    assert re.fullmatch(r"AKIA[A-Z2-7]{16}", credentials.access_key_id)
    assert re.fullmatch(r"[A-Za-z0-9]{40}", credentials.secret_access_key)
    assert credentials.secret_access_key not in repr(key)


def test_the_file_is_for_the_owner_only(path: Path) -> None:
    store = Store(path)
    store.open_tunnel(NewTunnel(), digests(store), NOW)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_tunnels_are_listed_newest_first_in_pages(path: Path) -> None:
    store = Store(path)
    opened = [store.open_tunnel(NewTunnel(thing_name=f"thing{n % 2}"), digests(store), NOW) for n in range(5)]
    newest_first = opened[::-1]
    page = store.list_tunnels(thing_name=None, before=None, limit=2)
    assert page == newest_first[:2]
    assert store.list_tunnels(thing_name=None, before=page[-1].number, limit=9) == newest_first[2:]
    assert store.list_tunnels(thing_name="thing1", before=None, limit=9) == [opened[3], opened[1]]


def test_tokens_are_found_by_digest_until_the_tunnel_is_deleted(path: Path) -> None:
    store = Store(path)
    tokens = digests(store)
    tunnel = store.open_tunnel(NewTunnel(), tokens, NOW)
    found = store.find_token(tokens[Mode.SOURCE])
    assert found is not None
    assert (found.mode, found.used, found.revoked) == (Mode.SOURCE, False, False)
    store.delete_tunnel(tunnel.tunnel_id)
    assert store.find_token(tokens[Mode.SOURCE]) is None


def test_rotation_revokes_only_the_ends_that_are_rotated(path: Path) -> None:
    store = Store(path)
    old, new = digests(store), digests(store)
    tunnel = store.open_tunnel(NewTunnel(), old, NOW)
    store.rotate_tokens(tunnel, {Mode.SOURCE: new[Mode.SOURCE]}, None, NOW + 1)
    revoked = {mode: getattr(store.find_token(old[mode]), "revoked", None) for mode in Mode}
    assert revoked == {Mode.SOURCE: True, Mode.DESTINATION: False}
    assert getattr(store.find_token(new[Mode.SOURCE]), "revoked", None) is False


def test_expired_tunnels_are_found_until_they_are_closed(path: Path) -> None:
    store = Store(path)
    brief = store.open_tunnel(NewTunnel(lifetime=1), digests(store), NOW)
    store.open_tunnel(NewTunnel(lifetime=2), digests(store), NOW)
    assert store.next_expiry() == NOW + 60
    assert store.expired(NOW + 60) == [brief.tunnel_id]
    store.close_tunnel(brief.tunnel_id, NOW + 60)
    assert store.expired(NOW + 60) == []
    assert store.next_expiry() == NOW + 120


def test_closed_tunnels_are_forgotten_after_a_while(path: Path) -> None:
    store = Store(path)
    closed = store.open_tunnel(NewTunnel(), digests(store), NOW)
    still_open = store.open_tunnel(NewTunnel(), digests(store), NOW)
    store.close_tunnel(closed.tunnel_id, NOW)
    store.delete_closed_before(NOW + 1)
    assert store.find_tunnel(closed.tunnel_id) is None
    assert store.find_tunnel(still_open.tunnel_id) is not None


def test_no_end_counts_as_connected_after_a_restart(path: Path) -> None:
    store = Store(path)
    tunnel = store.open_tunnel(NewTunnel(), digests(store), NOW)
    store.set_connected(tunnel.tunnel_id, Mode.SOURCE, True, NOW + 1)
    store.disconnect_all(NOW + 2)
    states = store.end_states(tunnel.tunnel_id)
    assert (states[Mode.SOURCE].connected, states[Mode.SOURCE].updated_at) == (False, NOW + 2)
    assert states[Mode.DESTINATION].updated_at == NOW


def test_a_failed_change_leaves_nothing_behind(path: Path) -> None:
    store = Store(path)
    tokens = digests(store)
    store.open_tunnel(NewTunnel(), tokens, NOW)
    with pytest.raises(sqlite3.IntegrityError):
        store.open_tunnel(NewTunnel(), tokens, NOW)
    assert len(store.list_tunnels(thing_name=None, before=None, limit=9)) == 1


def test_a_database_of_the_first_version_keeps_its_key_its_tunnels_and_their_tokens(path: Path) -> None:
    tokens = {mode: digest(new_access_token()) for mode in Mode}
    with sqlite3.connect(path) as database:
        for statement in _VERSION_1.split(";"):
            database.execute(statement)
        database.execute("INSERT INTO identity VALUES ('123456789012', 'us-east-1')")
        database.execute("INSERT INTO credentials VALUES ('AKIAOLD', 'old secret')")
        database.execute(
            "INSERT INTO tunnels (tunnel_id, thing_name, services, lifetime, created_at, updated_at, expires_at)"
            " VALUES ('old', 'pump', '[]', 720, 0, 0, 9)"
        )
        database.executemany(
            "INSERT INTO access_tokens (digest, tunnel_id, mode) VALUES (?, 'old', ?)",
            [(token, mode.value) for mode, token in tokens.items()],
        )
        database.execute("PRAGMA user_version = 1")
    database.close()

    store = Store(path)
    (key,) = store.keys()
    assert (key.name, key.credentials.access_key_id, key.read_only, key.things) == ("default", "AKIAOLD", False, ())
    assert store.identity().account_id == "123456789012"
    assert [tunnel.tunnel_id for tunnel in store.list_tunnels(thing_name="pump", before=None, limit=9)] == ["old"]
    token = store.find_token(tokens[Mode.SOURCE])
    assert token is not None
    assert (token.tunnel_id, token.mode, token.issued_to) == ("old", Mode.SOURCE, None)


def test_keys_are_found_by_id_and_by_name_until_they_are_removed(path: Path) -> None:
    store = Store(path)
    key = AccessKey("ci", new_key_pair(), read_only=True, things=("line-3-*", "pump"))
    store.add_key(key)
    assert store.find_key(key.credentials.access_key_id) == store.named_key("ci") == key
    with pytest.raises(ServiceError, match="ci already"):
        store.add_key(AccessKey("ci", new_key_pair()))
    store.remove_key("ci")
    assert store.find_key(key.credentials.access_key_id) is None
    with pytest.raises(ServiceError, match="no access key ci"):
        store.remove_key("ci")


def test_a_newer_schema_is_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ServiceError, match="newer tunnelproxy"):
        Store(path)


def test_a_file_that_is_no_database_is_reported(path: Path) -> None:
    path.write_text("not a database, and long enough to be taken for one" * 20)
    with pytest.raises(ServiceError, match=re.escape(str(path))):
        Store(path)


def test_a_change_that_cannot_be_written_is_not_made_and_the_operator_is_told_once(path: Path) -> None:
    said: list[str] = []
    store = Store(path, Outage("the database", "…", report=lambda level, text: said.append(text)))
    tunnel = store.open_tunnel(NewTunnel(), digests(store), NOW)
    store._db.execute("PRAGMA query_only = 1")
    for _ in range(2):
        with pytest.raises(StoreError, match="readonly database; check that its disk and folder are writable"):
            store.close_tunnel(tunnel.tunnel_id, NOW)
    store.set_connected(tunnel.tunnel_id, Mode.SOURCE, True, NOW)
    assert store.end_states(tunnel.tunnel_id)[Mode.SOURCE].connected
    assert store.failed_writes == 3
    store._db.execute("PRAGMA query_only = 0")
    store.write_ends()
    store.close_tunnel(tunnel.tunnel_id, NOW)
    assert [text.partition(":")[0] for text in said] == [
        "cannot write to the database",
        "the database can be written again; writing failed 3 times within 0 s",
    ]
    assert Store(path).end_states(tunnel.tunnel_id)[Mode.SOURCE].connected


def test_things_are_changed_found_in_order_and_removed(path: Path) -> None:
    store = Store(path)
    store.put_thing("pump", "rotating", {"site": "north"})
    store.put_thing("press")
    store.put_thing("pump", attributes={"site": "south"})
    pump = store.find_thing("pump")
    assert pump == Thing("pump", "rotating", {"site": "south"}, 2)
    assert [thing.name for thing in store.things_after("")] == ["press", "pump"]
    assert [thing.name for thing in store.things_after("press")] == ["pump"]
    assert (store.remove_thing("pump"), store.remove_thing("pump")) == (True, False)
    assert store.find_thing("pump") is None


def test_due_tunnels_expire_in_the_order_of_their_lifetimes(path: Path) -> None:
    store = Store(path)
    assert store.next_expiry() is None
    long, short = (store.open_tunnel(NewTunnel(lifetime=minutes), digests(store), NOW) for minutes in (2, 1))
    assert store.count_open_tunnels() == 2
    assert store.next_expiry() == short.expires_at
    assert store.expired(NOW + 61) == [short.tunnel_id]
    store.close_tunnel(short.tunnel_id, NOW + 61)
    store.delete_tunnel(long.tunnel_id)
    assert store.count_open_tunnels() == 0
