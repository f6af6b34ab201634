# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases of all versions become databases of this one."""

from __future__ import annotations

import sqlite3

import pytest

from tunnelproxy.service.state.schema import _STEPS, DEFAULT_KEY, DEFAULT_REGION, SCHEMA_VERSION, upgrade


def tables(db: sqlite3.Connection) -> set[str]:
    return {
        row[0]
        for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'sqlite_sequence'")
    }


def at_version(version: int) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    for statements in _STEPS[:version]:
        db.executescript(statements)
    return db


def test_an_empty_file_gets_an_account_and_a_key() -> None:
    db = at_version(0)
    upgrade(db, 0)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    account_id, region = db.execute("SELECT account_id, region FROM identity").fetchone()
    assert (len(account_id), account_id.isdecimal(), region) == (12, True, DEFAULT_REGION)
    assert db.execute("SELECT name, read_only, things FROM access_keys").fetchall() == [(DEFAULT_KEY, 0, "[]")]


@pytest.mark.parametrize("version", range(SCHEMA_VERSION + 1))
def test_all_versions_end_with_the_same_tables(version: int) -> None:
    new, old = at_version(0), at_version(version)
    upgrade(new, 0)
    upgrade(old, version)
    assert tables(old) == tables(new)


def test_the_key_of_the_first_version_is_kept() -> None:
    db = at_version(1)
    db.execute("INSERT INTO credentials VALUES ('AKIAOLD', 'secret')")
    upgrade(db, 1)
    assert db.execute("SELECT name, access_key_id, secret_access_key FROM access_keys").fetchall() == [
        (DEFAULT_KEY, "AKIAOLD", "secret")
    ]
