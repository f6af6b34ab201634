# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.hub.account import Account, TunnelKey
from tunnelproxy.hub.ssh_names import SshNames, qualified_name

FIRST = TunnelKey(Account("aws", "123456789012", "eu-central-1"), "gw")
OTHER_ACCOUNT = TunnelKey(Account("aws", "210987654321", "eu-central-1"), "gw")
OTHER_REGION = TunnelKey(Account("aws", "123456789012", "us-east-1"), "gw")


def test_in_one_account_each_thing_has_its_own_name(tmp_path: Path) -> None:
    names = SshNames(tmp_path / "names")
    pump = FIRST._replace(thing="pump")
    assert [(names.host(key), names.host_key(key)) for key in (FIRST, pump)] == [("gw", "gw"), ("pump", "pump")]


def test_the_same_name_elsewhere_is_another(tmp_path: Path) -> None:
    names = SshNames(tmp_path / "names")
    names.host(FIRST)
    assert names.host(OTHER_ACCOUNT) == names.host_key(OTHER_ACCOUNT) == "gw.210987654321.eu-central-1"
    assert names.host(OTHER_REGION) == names.host_key(OTHER_REGION) == "gw.123456789012.us-east-1"
    assert names.host(FIRST) == names.host_key(FIRST) == "gw"


def test_the_next_hub_gives_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "names"
    SshNames(path).host(FIRST)
    names = SshNames(path)
    assert names.host(OTHER_ACCOUNT) == qualified_name(OTHER_ACCOUNT)
    assert names.host(FIRST) == "gw"
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_service_that_has_moved_keeps_host_keys_but_shares_no_connections_with_its_copy(tmp_path: Path) -> None:
    names = SshNames(tmp_path / "names")
    moved = [FIRST._replace(account=FIRST.account._replace(endpoint=f"https://127.0.0.1:{port}")) for port in (1, 2, 3)]
    assert [names.host_key(key) for key in moved] == ["gw", "gw", "gw"]
    assert names.host(moved[0]) == "gw"
    assert len({names.host(key) for key in moved}) == 3
    elsewhere = OTHER_REGION._replace(account=moved[0].account._replace(region="us-east-1"))
    assert names.host_key(elsewhere) == "gw.123456789012.us-east-1"


def test_ssh_does_not_tell_upper_from_lower_case_so_names_that_differ_in_it_alone_are_changed(tmp_path: Path) -> None:
    names = SshNames(tmp_path / "names")
    other = FIRST._replace(thing="Gw")
    assert names.host(FIRST) == "gw"
    assert names.host(other).startswith("Gw.123456789012.eu-central-1.")
    assert names.host_key(other) == names.host(other)


def test_copies_of_a_service_are_told_apart_whoever_has_the_plain_name(tmp_path: Path) -> None:
    names = SshNames(tmp_path / "names")
    names.host(OTHER_ACCOUNT)
    copies = [FIRST._replace(account=FIRST.account._replace(endpoint=f"https://127.0.0.1:{port}")) for port in (1, 2)]
    unknown = [key._replace(account=key.account._replace(account_id="")) for key in copies]
    assert len({names.host(key) for key in (*copies, *unknown)}) == 4
    assert len({names.host_key(key) for key in unknown}) == 2


def test_a_line_that_was_half_written_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "names"
    names = SshNames(path)
    names.host(FIRST)
    names.host(FIRST._replace(thing="pump"))
    path.write_text(path.read_text()[:-20])
    names = SshNames(path)
    assert names.host(OTHER_ACCOUNT) != "gw"
    names.host(FIRST._replace(thing="pump"))
    assert SshNames(path).host(FIRST) == "gw"


@pytest.mark.parametrize("text", ["not json\n", "[1, 2, 3]\n", "\x00"])
def test_a_damaged_file_ends_nothing(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "names"
    path.write_text(text)
    assert SshNames(path).host(FIRST) == "gw"
    assert "skipping a line" in caplog.text


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert SshNames(tmp_path / "file" / "names").host(FIRST) == "gw"
    assert "cannot write" in caplog.text
