# SPDX-License-Identifier: GPL-3.0-or-later
"""Mosquitto's password file. That Mosquitto accepts it, the integration tests show."""

from __future__ import annotations

import base64
import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tunnelproxy.service.mqtt.password_file import PasswordFile, new_password, password_line


@pytest.fixture
def passwords(tmp_path: Path) -> PasswordFile:
    return PasswordFile(tmp_path / "passwords")


def test_a_line_holds_a_salted_hash() -> None:
    user, _, rest = password_line("pump", "word").partition(":")
    _, kind, rounds, salt, hashed = rest.split("$")
    expected = hashlib.pbkdf2_hmac("sha512", b"word", base64.b64decode(salt), int(rounds))
    assert (user, kind, base64.b64decode(hashed)) == ("pump", "7", expected)
    assert password_line("pump", "word") != password_line("pump", "word")


def test_passwords_are_long_and_never_the_same() -> None:
    made = {new_password() for _ in range(100)}
    assert len(made) == 100
    assert min(map(len, made)) >= 43


def test_users_come_and_go(passwords: PasswordFile, tmp_path: Path) -> None:
    versions = [passwords.version()]
    first = passwords.set("pump")
    versions.append(passwords.version())
    passwords.set("valve")
    assert passwords.set("pump") != first
    versions.append(passwords.version())
    assert passwords.has("pump")
    assert not passwords.has("pum")
    assert passwords.users() == {"pump", "valve"}
    assert len(passwords.path.read_text().splitlines()) == 2
    assert passwords.remove("pump")
    assert not passwords.remove("pump")
    assert not passwords.has("pump")
    versions.append(passwords.version())
    assert len(set(versions)) == len(versions)
    assert stat.S_IMODE(passwords.path.stat().st_mode) == 0o600


def test_those_who_come_at_once_are_all_remembered(passwords: PasswordFile) -> None:
    names = [f"thing-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(passwords.set, names))
    assert all(map(passwords.has, names))
