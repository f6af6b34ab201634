# SPDX-License-Identifier: Apache-2.0
"""The tables of the service's database, and upgrades from older versions."""

from __future__ import annotations

import secrets
import sqlite3
import string

from ..model import new_key_pair

__all__ = ["DEFAULT_KEY", "DEFAULT_REGION", "SCHEMA_VERSION", "upgrade"]

DEFAULT_REGION = "us-east-1"
"""The region of a service if the operator chooses none: clients require one in AWS's format."""

DEFAULT_KEY = "default"
"""The name of the access key that is created on the first start. It may do everything."""

_VERSION_1 = """
CREATE TABLE identity (account_id TEXT NOT NULL, region TEXT NOT NULL);
CREATE TABLE credentials (access_key_id TEXT PRIMARY KEY, secret_access_key TEXT NOT NULL);
CREATE TABLE tunnels (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    tunnel_id TEXT NOT NULL UNIQUE,
    description TEXT,
    thing_name TEXT,
    services TEXT NOT NULL,
    lifetime INTEGER NOT NULL,
    is_open INTEGER NOT NULL DEFAULT 1,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    expires_at REAL NOT NULL
);
CREATE INDEX open_tunnels ON tunnels (expires_at) WHERE is_open;
CREATE TABLE tags (
    tunnel_id TEXT NOT NULL REFERENCES tunnels (tunnel_id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (tunnel_id, key)
);
CREATE TABLE ends (
    tunnel_id TEXT NOT NULL REFERENCES tunnels (tunnel_id) ON DELETE CASCADE,
    mode TEXT NOT NULL,
    connected INTEGER NOT NULL DEFAULT 0,
    updated_at REAL NOT NULL,
    PRIMARY KEY (tunnel_id, mode)
);
CREATE TABLE access_tokens (
    digest BLOB PRIMARY KEY,
    tunnel_id TEXT NOT NULL REFERENCES tunnels (tunnel_id) ON DELETE CASCADE,
    mode TEXT NOT NULL,
    used INTEGER NOT NULL DEFAULT 0,
    revoked INTEGER NOT NULL DEFAULT 0,
    client_token_digest BLOB
);
CREATE INDEX tokens_of_tunnel ON access_tokens (tunnel_id);
CREATE INDEX tokens_by_client ON access_tokens (client_token_digest) WHERE client_token_digest IS NOT NULL;
"""

_VERSION_2 = """
CREATE TABLE access_keys (
    name TEXT PRIMARY KEY,
    access_key_id TEXT NOT NULL UNIQUE,
    secret_access_key TEXT NOT NULL,
    read_only INTEGER NOT NULL DEFAULT 0,
    things TEXT NOT NULL DEFAULT '[]'
);
INSERT INTO access_keys (name, access_key_id, secret_access_key)
    SELECT 'default', access_key_id, secret_access_key FROM credentials;
DROP TABLE credentials;
ALTER TABLE access_tokens ADD COLUMN issued_to TEXT;
"""

_VERSION_3 = """
CREATE TABLE things (
    name TEXT PRIMARY KEY,
    thing_type TEXT,
    attributes TEXT NOT NULL DEFAULT '{}',
    version INTEGER NOT NULL DEFAULT 1
);
"""

_STEPS = (_VERSION_1, _VERSION_2, _VERSION_3)

SCHEMA_VERSION = len(_STEPS)


def upgrade(db: sqlite3.Connection, version: int) -> None:
    """Upgrade a database to :data:`SCHEMA_VERSION`, within the caller's transaction.

    Args:
        db: the database.
        version: its version; 0 for an empty file, which also gets an account and its first access key.
    """
    for step, statements in enumerate(_STEPS[version:], start=version + 1):
        for statement in statements.split(";"):
            db.execute(statement)
        if step == 1:
            account_id = "".join(secrets.choice(string.digits) for _ in range(12))
            db.execute("INSERT INTO identity VALUES (?, ?)", (account_id, DEFAULT_REGION))
            pair = new_key_pair()
            db.execute("INSERT INTO credentials VALUES (?, ?)", (pair.access_key_id, pair.secret_access_key))
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
