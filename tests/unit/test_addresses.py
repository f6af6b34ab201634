# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.addresses import (
    Address,
    TcpAddress,
    UnixAddress,
    match_services,
    parse_address,
    parse_list,
    read_directory,
)
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.protocol.session import Mode


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("22", TcpAddress(None, 22)),
        ("127.0.0.1:22", TcpAddress("127.0.0.1", 22)),
        ("device.local:8080", TcpAddress("device.local", 8080)),
        ("[::1]:22", TcpAddress("::1", 22)),
        ("/run/app.sock", UnixAddress("/run/app.sock")),
        ("./app.sock", UnixAddress("./app.sock")),
    ],
)
def test_a_destination_address_is_a_port_a_host_and_port_or_a_path(text: str, address: Address) -> None:
    assert parse_address(text, "-d", Mode.DESTINATION) == address


@pytest.mark.parametrize("text", ["", "ssh", "70000", "host:", ":22", "::1:22", "1:2:3", "-5", "22 23"])
def test_what_is_no_address_is_named_with_the_option(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"-d: '{text.replace('[', '.')}' is not an address: give PORT"):
        parse_address(text, "-d", Mode.DESTINATION)


def test_port_zero_picks_a_port_to_listen_on_but_is_none_to_connect_to() -> None:
    assert parse_address("0", "-s", Mode.SOURCE) == TcpAddress(None, 0)
    with pytest.raises(ConfigurationError, match="'0' is not an address"):
        parse_address("0", "-d", Mode.DESTINATION)


def test_a_source_does_not_listen_on_unix_sockets() -> None:
    with pytest.raises(ConfigurationError, match=r"'/run/x\.sock' is not an address"):
        parse_address("/run/x.sock", "-s", Mode.SOURCE)


def test_a_list_maps_service_ids() -> None:
    assert parse_list("HTTP1=5555,SSH1=0.0.0.0:3333", "-s", Mode.SOURCE) == {
        "HTTP1": TcpAddress(None, 5555),
        "SSH1": TcpAddress("0.0.0.0", 3333),
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SSH1=22,SSH1=23", "SSH1 is given twice"),
        ("22,SSH1=23", "each needs its service ID"),
        ("SSH 1=22", "'SSH 1' is not a service ID"),
        ("SSH1=", "'' is not an address"),
    ],
)
def test_a_malformed_list_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse_list(text, "-d/--destination-app", Mode.DESTINATION)


def test_every_ini_file_below_the_directory_counts(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "SSHDestination.ini").write_text("# the guide's\nHTTP1 = 80\n")
    (tmp_path / "deep" / "er" / "more.ini").write_text("SSH1 = localhost:22 ; comment\n")
    (tmp_path / "notes.txt").write_text("not read\n")
    assert read_directory(tmp_path, Mode.DESTINATION) == {
        "HTTP1": TcpAddress(None, 80),
        "SSH1": TcpAddress("localhost", 22),
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("this is not ini\n", "is not an ini file of services.*line 1"),
        ("HTTP1 = 5555 SSH1 = 3333\n", "put each service on a line of its own"),
        ("SSH1 = 22\nSSH1 = 23\n", "SSH1 stands twice"),
        ("[section]\nSSH1 = 22\n", r"remove the line \[section\]"),
        ("SSH1 = ssh\n", "a.ini: SSH1: 'ssh' is not an address"),
        ("S H = 22\n", "'S H' is not a service ID"),
    ],
)
def test_a_malformed_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "a.ini").write_text(text)
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        read_directory(tmp_path, Mode.DESTINATION)
    assert str(tmp_path / "a.ini") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_service_in_two_files_is_refused_with_both_names(tmp_path: Path) -> None:
    (tmp_path / "a.ini").write_text("SSH1 = 22\n")
    (tmp_path / "b.ini").write_text("SSH1 = 23\n")
    with pytest.raises(ConfigurationError, match=r"b\.ini: SSH1 is already configured in .*a\.ini"):
        read_directory(tmp_path, Mode.DESTINATION)


SSH = {"SSH1": TcpAddress(None, 22)}


def test_a_source_picks_ports_for_what_is_not_configured() -> None:
    assert match_services(SSH, ["SSH1", "HTTP1"], Mode.SOURCE, "-s") == {**SSH, "HTTP1": TcpAddress(None, 0)}


def test_an_address_without_service_id_is_for_the_only_service() -> None:
    assert match_services({"": TcpAddress(None, 22)}, ["SSH1"], Mode.DESTINATION, "-d") == SSH
    with pytest.raises(ConfigurationError, match="fits a tunnel with one service only"):
        match_services({"": TcpAddress(None, 22)}, ["SSH1", "HTTP1"], Mode.DESTINATION, "-d")


def test_a_destination_needs_every_service_and_may_know_more() -> None:
    assert match_services({**SSH, "X": TcpAddress(None, 1)}, ["SSH1"], Mode.DESTINATION, "-d") == SSH
    with pytest.raises(ConfigurationError, match="no address for HTTP1: -d has SSH1, the tunnel carries SSH1, HTTP1"):
        match_services(SSH, ["SSH1", "HTTP1"], Mode.DESTINATION, "-d")


def test_a_source_may_not_configure_what_is_not_offered() -> None:
    with pytest.raises(ConfigurationError, match="does not offer SSH1: -s has SSH1, the tunnel carries HTTP1"):
        match_services(SSH, ["HTTP1"], Mode.SOURCE, "-s")
