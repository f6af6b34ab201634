# SPDX-License-Identifier: Apache-2.0
"""The service's state in SQLite: tunnels with their tags, ends and token digests, things, and access keys.

Each change is committed before its caller answers a client, so a killed service loses none. A change that cannot be
written, for example on a full disk, is not made at all and raises an error; later changes may succeed. Access tokens
and client tokens are stored as SHA-256 digests only. Secret access keys must be stored as they are, because signatures
are verified with them: hence the file's mode 0600.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...outage import Outage
from ..errors import ServiceError, StoreError
from ..model import AccessKey, AccessToken, Credentials, EndState, Identity, Mode, NewTunnel, Thing, Tunnel
from .schema import DEFAULT_KEY, SCHEMA_VERSION, upgrade

__all__ = ["Store"]

_SELECT_TUNNEL = (
    "SELECT number, tunnel_id, description, thing_name, services, lifetime, is_open, created_at, updated_at, expires_at"
    " FROM tunnels"
)


_SELECT_KEY = "SELECT name, access_key_id, secret_access_key, read_only, things FROM access_keys"

_SELECT_THING = "SELECT name, thing_type, attributes, version FROM things"


class Store:
    """The database of a service. Times are seconds since the epoch.

    Its methods raise :class:`errors.StoreError` if SQLite cannot read or write.

    Args:
        path: the database file. If it is missing, it is created with a new account and a new access key.
        outage: records whether changes can be written.

    Raises:
        ServiceError: the file is not the database of a service, or that of a newer version.
    """

    def __init__(self, path: Path, outage: Outage | None = None) -> None:
        self._path = path
        self._outage = outage
        # Which ends are connected, if that is not written yet. No client waits until it is written.
        self._unwritten: dict[tuple[str, str], EndState] = {}
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # Only this class begins transactions: the module begins them at times that differ between Python versions.
            self._db = sqlite3.connect(str(path), isolation_level=None, factory=_Connection)
            self._db.execute("PRAGMA journal_mode = WAL")
            # Committed changes survive any exit of this process. To survive a power failure as well would require an
            # fsync in each handshake, and the data of all tunnels would wait for the disk.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._prepare()
        except (OSError, sqlite3.Error, StoreError) as error:
            words = error
            while isinstance(words, StoreError) and isinstance(words.__cause__, (sqlite3.Error, StoreError)):
                words = words.__cause__
            raise ServiceError(f"cannot open the service's database {path}: {words}{_remedy(words)}") from error

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @property
    def failed_writes(self) -> int:
        """How many changes could not be written since the start."""
        return 0 if self._outage is None else self._outage.total

    # Identity and keys

    def identity(self) -> Identity:
        """The account and region of this service."""
        account_id, region = self._db.execute("SELECT account_id, region FROM identity").fetchone()
        return Identity(account_id, region)

    def set_region(self, region: str) -> None:
        """Change the region; only before the first start, since clients and ARNs depend on it afterwards."""
        with self._transaction():
            self._db.execute("UPDATE identity SET region = ?", (region,))

    def keys(self) -> list[AccessKey]:
        """All access keys, sorted by name."""
        return [_access_key(row) for row in self._db.execute(_SELECT_KEY + " ORDER BY name")]

    def find_key(self, access_key_id: str) -> AccessKey | None:
        """The access key with this ID, or None."""
        row = self._db.execute(_SELECT_KEY + " WHERE access_key_id = ?", (access_key_id,)).fetchone()
        return None if row is None else _access_key(row)

    def named_key(self, name: str = DEFAULT_KEY) -> AccessKey | None:
        """The access key with this name, or None."""
        row = self._db.execute(_SELECT_KEY + " WHERE name = ?", (name,)).fetchone()
        return None if row is None else _access_key(row)

    def add_key(self, key: AccessKey) -> None:
        """Add an access key.

        Raises:
            ServiceError: there is one with the same name.
        """
        try:
            with self._transaction():
                self._db.execute(
                    "INSERT INTO access_keys (name, access_key_id, secret_access_key, read_only, things)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (
                        key.name,
                        key.credentials.access_key_id,
                        key.credentials.secret_access_key,
                        key.read_only,
                        json.dumps(key.things),
                    ),
                )
        except sqlite3.IntegrityError:
            raise ServiceError(
                f"there is an access key {key.name} already; remove it first, or use another name"
            ) from None

    def remove_key(self, name: str) -> None:
        """Remove an access key: requests signed with it are rejected.

        Raises:
            ServiceError: there is none with this name.
        """
        with self._transaction():
            if self._db.execute("DELETE FROM access_keys WHERE name = ?", (name,)).rowcount == 0:
                raise ServiceError(f"there is no access key {name}; list them with: tunnelproxy service key list")

    # Things

    def put_thing(self, name: str, thing_type: str | None = None, attributes: Mapping[str, str] | None = None) -> None:
        """Add or change a thing; values of None leave it unchanged."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO things (name, thing_type, attributes) VALUES (:name, :type, coalesce(:attributes, '{}'))"
                " ON CONFLICT (name) DO UPDATE SET thing_type = coalesce(:type, thing_type),"
                " attributes = coalesce(:attributes, attributes), version = version + 1",
                {
                    "name": name,
                    "type": thing_type,
                    "attributes": None if attributes is None else json.dumps(dict(attributes), sort_keys=True),
                },
            )

    def find_thing(self, name: str) -> Thing | None:
        """The thing with this name, or None."""
        row = self._db.execute(_SELECT_THING + " WHERE name = ?", (name,)).fetchone()
        return None if row is None else _thing(row)

    def things_after(self, name: str) -> Iterator[Thing]:
        """The things whose names come after this one, in alphabetical order."""
        return map(_thing, self._db.execute(_SELECT_THING + " WHERE name > ? ORDER BY name", (name,)))

    def remove_thing(self, name: str) -> bool:
        """Remove a thing; return whether there was one."""
        with self._transaction():
            return self._db.execute("DELETE FROM things WHERE name = ?", (name,)).rowcount > 0

    # Tunnels

    def open_tunnel(
        self, new: NewTunnel, token_digests: dict[Mode, bytes], now: float, issued_to: str | None = None
    ) -> Tunnel:
        """Add a tunnel with both ends disconnected, and an access token for each."""
        tunnel_id = str(uuid.uuid4())
        with self._transaction():
            self._db.execute(
                "INSERT INTO tunnels"
                " (tunnel_id, description, thing_name, services, lifetime, created_at, updated_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    tunnel_id,
                    new.description,
                    new.thing_name,
                    json.dumps(new.services),
                    new.lifetime,
                    now,
                    now,
                    now + new.lifetime * 60,
                ),
            )
            self._db.executemany(
                "INSERT INTO ends (tunnel_id, mode, updated_at) VALUES (?, ?, ?)",
                [(tunnel_id, mode.value, now) for mode in Mode],
            )
            self._insert_tags(tunnel_id, new.tags)
            self._insert_tokens(tunnel_id, token_digests, issued_to)
        return self._find_existing(tunnel_id)

    def find_tunnel(self, tunnel_id: str) -> Tunnel | None:
        """The tunnel with this ID, open or closed, or None."""
        row = self._db.execute(_SELECT_TUNNEL + " WHERE tunnel_id = ?", (tunnel_id,)).fetchone()
        return None if row is None else _tunnel(row)

    def list_tunnels(
        self, *, thing_name: str | None, before: int | None, limit: int, key: AccessKey | None = None
    ) -> list[Tunnel]:
        """Tunnels, newest first.

        Args:
            thing_name: only those of this thing.
            before: only those opened before the tunnel of this number.
            limit: the maximum number.
            key: only those of things that this access key covers.
        """
        rows = self._db.execute(
            _SELECT_TUNNEL + " WHERE (:thing IS NULL OR thing_name = :thing) AND (:before IS NULL OR number < :before)"
            " ORDER BY number DESC",
            {"thing": thing_name, "before": before},
        )
        visible = (tunnel for tunnel in map(_tunnel, rows) if key is None or key.covers(tunnel.thing_name))
        return list(itertools.islice(visible, limit))

    def count_open_tunnels(self) -> int:
        """How many tunnels are open."""
        return int(self._db.execute("SELECT count(*) FROM tunnels WHERE is_open").fetchone()[0])

    def close_tunnel(self, tunnel_id: str, now: float) -> None:
        """Mark a tunnel as closed."""
        with self._transaction():
            self._db.execute("UPDATE tunnels SET is_open = 0, updated_at = ? WHERE tunnel_id = ?", (now, tunnel_id))

    def delete_tunnel(self, tunnel_id: str) -> None:
        """Delete a tunnel and all that belongs to it."""
        with self._transaction():
            self._db.execute("DELETE FROM tunnels WHERE tunnel_id = ?", (tunnel_id,))

    def delete_closed_before(self, moment: float) -> None:
        """Delete the tunnels that were closed before ``moment``."""
        with self._transaction():
            self._db.execute("DELETE FROM tunnels WHERE NOT is_open AND updated_at < ?", (moment,))

    def expired(self, now: float) -> list[str]:
        """The IDs of the open tunnels whose lifetime is over."""
        query = "SELECT tunnel_id FROM tunnels WHERE is_open AND expires_at <= ?"
        return [str(row[0]) for row in self._db.execute(query, (now,))]

    def next_expiry(self) -> float | None:
        """When the next open tunnel expires, or None."""
        moment: float | None = self._db.execute("SELECT min(expires_at) FROM tunnels WHERE is_open").fetchone()[0]
        return moment

    # Tags

    def tags(self, tunnel_id: str) -> list[tuple[str, str]]:
        """The tags of a tunnel, sorted by key."""
        return list(self._db.execute("SELECT key, value FROM tags WHERE tunnel_id = ? ORDER BY key", (tunnel_id,)))

    def set_tags(self, tunnel_id: str, tags: Iterable[tuple[str, str]]) -> None:
        """Add tags to a tunnel, replacing those with the same keys."""
        with self._transaction():
            self._insert_tags(tunnel_id, tags)

    def remove_tags(self, tunnel_id: str, keys: Sequence[str]) -> None:
        """Remove the tags with these keys, if they exist."""
        with self._transaction():
            self._db.executemany("DELETE FROM tags WHERE tunnel_id = ? AND key = ?", [(tunnel_id, key) for key in keys])

    # Ends

    def end_states(self, tunnel_id: str) -> dict[Mode, EndState]:
        """The state of both ends of a tunnel."""
        query = "SELECT mode, connected, updated_at FROM ends WHERE tunnel_id = ?"
        rows = self._db.execute(query, (tunnel_id,))
        return {Mode(mode): self._unwritten.get((tunnel_id, mode)) or EndState(bool(on), at) for mode, on, at in rows}

    def set_connected(self, tunnel_id: str, mode: Mode, connected: bool, now: float) -> None:
        """Record that an end connected or disconnected. If this cannot be written now, it is written later."""
        self._unwritten[tunnel_id, mode.value] = EndState(connected, now)
        # The outage has recorded the failure.
        with contextlib.suppress(StoreError):
            self.write_ends()

    def write_ends(self) -> None:
        """Write what :meth:`set_connected` could not write."""
        if not self._unwritten:
            return
        with self._transaction():
            self._db.executemany(
                "UPDATE ends SET connected = ?, updated_at = ? WHERE tunnel_id = ? AND mode = ?",
                [(state.connected, state.updated_at, *end) for end, state in self._unwritten.items()],
            )
        self._unwritten.clear()

    def disconnect_all(self, now: float) -> None:
        """Record that no end is connected, which is true whenever the service starts."""
        with self._transaction():
            self._db.execute("UPDATE ends SET connected = 0, updated_at = ? WHERE connected", (now,))

    # Tokens

    def find_token(self, token_digest: bytes) -> AccessToken | None:
        """The access token with this digest, or None."""
        row = self._db.execute(
            "SELECT tunnel_id, mode, used, revoked, client_token_digest, issued_to FROM access_tokens WHERE digest = ?",
            (token_digest,),
        ).fetchone()
        if row is None:
            return None
        tunnel_id, mode, used, revoked, client_token_digest, issued_to = row
        return AccessToken(tunnel_id, Mode(mode), bool(used), bool(revoked), client_token_digest, issued_to)

    def mark_token_used(self, token_digest: bytes, client_token_digest: bytes | None) -> None:
        """Record the first successful handshake with a token, and its client token."""
        with self._transaction():
            self._db.execute(
                "UPDATE access_tokens SET used = 1, client_token_digest = ? WHERE digest = ?",
                (client_token_digest, token_digest),
            )

    def rotate_tokens(
        self,
        tunnel: Tunnel,
        token_digests: dict[Mode, bytes],
        destination: tuple[str | None, tuple[str, ...]] | None,
        now: float,
        issued_to: str | None = None,
    ) -> None:
        """Revoke the access tokens of one or both ends of a tunnel, and add new ones.

        Args:
            tunnel: the tunnel.
            token_digests: the new token of each end whose token is rotated.
            destination: a new thing name and new services, if they change.
            now: the time.
            issued_to: the name of the access key that made the request.
        """
        with self._transaction():
            self._db.executemany(
                "UPDATE access_tokens SET revoked = 1 WHERE tunnel_id = ? AND mode = ?",
                [(tunnel.tunnel_id, mode.value) for mode in token_digests],
            )
            self._insert_tokens(tunnel.tunnel_id, token_digests, issued_to)
            thing_name, services = destination or (tunnel.thing_name, tunnel.services)
            self._db.execute(
                "UPDATE tunnels SET thing_name = ?, services = ?, updated_at = ? WHERE tunnel_id = ?",
                (thing_name, json.dumps(services), now, tunnel.tunnel_id),
            )

    def client_token_elsewhere(self, client_token_digest: bytes, tunnel_id: str) -> bool:
        """Whether this client token was used for another open tunnel."""
        row = self._db.execute(
            "SELECT 1 FROM access_tokens JOIN tunnels USING (tunnel_id)"
            " WHERE client_token_digest = ? AND tunnel_id != ? AND is_open LIMIT 1",
            (client_token_digest, tunnel_id),
        ).fetchone()
        return row is not None

    # Private

    def _prepare(self) -> None:
        if self._version() == SCHEMA_VERSION:
            # Reading requires no space on the disk.
            return
        with self._transaction():
            version = self._version()
            if version > SCHEMA_VERSION:
                raise ServiceError(
                    f"the database {self._path} was written by a newer tunnelproxy (schema {version}, this one knows "
                    f"{SCHEMA_VERSION}); upgrade tunnelproxy, or give --state-dir another directory"
                )
            upgrade(self._db, version)

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _find_existing(self, tunnel_id: str) -> Tunnel:
        return _tunnel(self._db.execute(_SELECT_TUNNEL + " WHERE tunnel_id = ?", (tunnel_id,)).fetchone())

    def _insert_tags(self, tunnel_id: str, tags: Iterable[tuple[str, str]]) -> None:
        self._db.executemany(
            "INSERT INTO tags (tunnel_id, key, value) VALUES (?, ?, ?)"
            " ON CONFLICT (tunnel_id, key) DO UPDATE SET value = excluded.value",
            [(tunnel_id, key, value) for key, value in tags],
        )

    def _insert_tokens(self, tunnel_id: str, token_digests: dict[Mode, bytes], issued_to: str | None) -> None:
        self._db.executemany(
            "INSERT INTO access_tokens (digest, tunnel_id, mode, issued_to) VALUES (?, ?, ?, ?)",
            [(token_digest, tunnel_id, mode.value, issued_to) for mode, token_digest in token_digests.items()],
        )

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db, self._path, self._outage)


class _Connection(sqlite3.Connection):
    """Raises :class:`errors.StoreError` when SQLite cannot read or write. Errors in our SQL are not converted."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*arguments)
        except sqlite3.OperationalError as error:
            raise StoreError(str(error)) from error

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        try:
            return super().executemany(*arguments)
        except sqlite3.OperationalError as error:
            raise StoreError(str(error)) from error


class _Transaction:
    """Makes all changes of the block, or none."""

    def __init__(self, db: sqlite3.Connection, path: Path, outage: Outage | None) -> None:
        self._db = db
        self._path = path
        self._outage = outage

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except StoreError as error:
            raise self._failed(error) from error

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
                if self._outage is not None:
                    self._outage.worked()
        except StoreError as failed:
            raise self._failed(failed) from failed
        finally:
            # After some errors SQLite rolls back automatically. After others, a failed COMMIT leaves the transaction
            # open, and no other transaction could ever begin.
            if self._db.in_transaction:
                with contextlib.suppress(StoreError):
                    self._db.execute("ROLLBACK")
        if isinstance(error, StoreError):
            raise self._failed(error) from error

    def _failed(self, error: StoreError) -> StoreError:
        if self._outage is not None:
            self._outage.failed(f"{error}{_remedy(error)}")
        return StoreError(f"cannot write to the service's database {self._path}: {error}{_remedy(error)}")


def _remedy(error: Exception) -> str:
    """What to do about SQLite's error, if that is clear from its message."""
    if "disk is full" in str(error):
        return "; free space on its disk"
    return "; check that its disk and folder are writable" if "readonly" in str(error) else ""


def _tunnel(row: tuple[Any, ...]) -> Tunnel:
    number, tunnel_id, description, thing_name, services, lifetime, is_open, created_at, updated_at, expires_at = row
    return Tunnel(
        number,
        tunnel_id,
        description,
        thing_name,
        tuple(json.loads(services)),
        lifetime,
        bool(is_open),
        created_at,
        updated_at,
        expires_at,
    )


def _thing(row: tuple[Any, ...]) -> Thing:
    name, thing_type, attributes, version = row
    return Thing(name, thing_type, json.loads(attributes), version)


def _access_key(row: tuple[Any, ...]) -> AccessKey:
    name, access_key_id, secret_access_key, read_only, things = row
    return AccessKey(name, Credentials(access_key_id, secret_access_key), bool(read_only), tuple(json.loads(things)))
