# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunnelproxy.errors import ConfigurationError
from tunnelproxy.protocol.session import NAMELESS, Mode
from tunnelproxy.proxy.addresses import (
    Address,
    BadAddress,
    TcpAddress,
    UnixAddress,
    match_services,
    parse_address,
    parse_list,
    read_directory,
)


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
def test_an_invalid_address_is_named_with_the_option(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"-d: '{text.replace('[', '.')}' is not an address: give PORT"):
        parse_address(text, "-d", Mode.DESTINATION)


def test_port_zero_is_any_port_to_listen_on_but_none_to_connect_to() -> None:
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
        ("SSH1=22,", "'' is not an address: there is a comma too many"),
        ("", "'' is not an address"),
    ],
)
def test_a_malformed_list_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse_list(text, "-d/--destination-app", Mode.DESTINATION)


def test_every_file_below_the_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "SSHDestination.ini").write_text("# the guide's\nHTTP1 = 80\n")
    (tmp_path / "deep" / "er" / "more").write_text("  SSH1 = localhost:22 ; comment\n\n;comment\n")
    (tmp_path / "deep" / ".empty").write_text("")
    assert read_directory(tmp_path, Mode.DESTINATION) == {
        "HTTP1": TcpAddress(None, 80),
        "SSH1": TcpAddress("localhost", 22),
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("this is not ini\n", "is not an ini file of services.*line 1"),
        ("HTTP1 = 5555 SSH1 = 3333\n", "put each service on a line of its own"),
        ("SSH1 = 22\nSSH1 = 23\n", "SSH1 occurs twice"),
        ("[section]\nSSH1 = 22\n", r"remove the line \[section\]"),
        ("SSH1 = ssh\n", "a.ini: SSH1: the value after '=' is not an address"),
        ("S H = 22\n", "line 1: it does not begin with a service ID"),
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


class Amiss:
    """Raises nothing, and keeps the objections."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, problem: str, instead: str) -> None:
        self.said.append(f"{problem}; {instead}")


def test_a_tolerant_caller_gets_the_valid_items_of_a_list() -> None:
    amiss = Amiss()
    assert parse_list(",SSH1=22,SSH1=23,", "-s", Mode.SOURCE, amiss) == {"SSH1": TcpAddress(None, 22)}
    assert len(amiss.said) == 3
    assert amiss.said[1] == "-s: SSH1 is given twice; the first, localhost:22, is used"


@pytest.mark.parametrize("text", ["SSH1=22,SSH1=x", "1,2", "1,SSH1=2", "a b=1"])
def test_an_invalid_address_is_refused_in_any_case(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_list(text, "-s", Mode.SOURCE, Amiss())


def test_a_tolerant_caller_gets_the_valid_lines_of_files(tmp_path: Path) -> None:
    amiss = Amiss()
    for name, content in {
        "a": b"SSH1 = 22\nbad name = 1\n[section]\nHTTP1 = 1\n[other]\nHTTP1 = 1\n",
        "b": b"SSH1 = 23\n",
        "c": b"\xff\xfe",
        "d": b"no\n",
        "e": b"A = 1\nA = 2\n",
        "f": b"[section]\nA = 1\n[other]\nA = 1\n",
        "g": b"HTTP1 = 80\nWRONG = address\n",
        "h": b"= 5\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "i").symlink_to("nowhere")
    found = read_directory(tmp_path, Mode.DESTINATION, amiss)
    assert {name: address for name, address in found.items() if not isinstance(address, BadAddress)} == {
        "SSH1": TcpAddress(None, 22),
        "HTTP1": TcpAddress(None, 80),
    }
    assert [text.partition(str(tmp_path))[2][1] for text in amiss.said] == list("aabcdefgh")
    # An invalid address matters only if the tunnel has that service.
    assert match_services(found, ["SSH1"], Mode.DESTINATION, "config/") == SSH
    with pytest.raises(ConfigurationError, match="g: WRONG: the value after '=' is not an address"):
        match_services(found, ["WRONG"], Mode.DESTINATION, "config/")


def test_a_tolerant_caller_serves_what_matches() -> None:
    amiss = Amiss()
    bare: dict[str, Address | BadAddress] = {"": TcpAddress(None, 22)}
    several = ["SSH1", "HTTP1"]
    assert match_services(bare, several, Mode.DESTINATION, "-d", bare=amiss) == {**SSH, "HTTP1": None}
    assert match_services(bare, several, Mode.SOURCE, "-s", bare=amiss) == {**SSH, "HTTP1": TcpAddress(None, 0)}
    assert match_services(SSH, ["HTTP1"], Mode.SOURCE, "config/", surplus=amiss) == {"HTTP1": TcpAddress(None, 0)}
    assert len(amiss.said) == 3


@pytest.mark.parametrize("configured", [{"": TcpAddress(None, 22)}, {"SSH1": TcpAddress(None, 22)}])
def test_a_tunnel_that_names_no_service_has_one_without_a_name(configured: dict[str, Address]) -> None:
    for offered in ([], [NAMELESS]):
        for mode in Mode:
            assert match_services(configured, offered, mode, "-d") == {NAMELESS: TcpAddress(None, 22)}


SSH: dict[str, Address] = {"SSH1": TcpAddress(None, 22)}


def test_a_source_uses_free_ports_for_what_is_not_configured() -> None:
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


def test_messages_do_not_show_the_content_of_a_file_which_may_be_about_something_else(tmp_path: Path) -> None:
    """Every file below the folder is read."""
    token = "AQGAAXhLbGnQ" * 6
    (tmp_path / "app.env").write_text("DB_PASSWORD = hunter2\nan other = wJalrXUtnFEMI\n")
    (tmp_path / "token").write_text(f"{token}==\n")
    shown: list[str] = []
    read_directory(tmp_path, Mode.SOURCE, lambda *words: shown.extend(words))
    assert len(shown) == 6
    assert not re.search("hunter2|wJalrXUtnFEMI|AQGAAXhLbGnQAQG", " ".join(shown))


def test_a_dangling_link_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.ini").write_text("SSH1 = 22\n")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert read_directory(tmp_path, Mode.SOURCE) == {"SSH1": TcpAddress(None, 22)}
