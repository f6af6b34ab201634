# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses are allowed."""

from __future__ import annotations

import pytest

from tunnelproxy.addresses import parse_address
from tunnelproxy.agent.allow_list import AllowList
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.protocol.session import Mode


def permits(allow: AllowList, address: str) -> bool:
    return allow.permits(parse_address(address, "test", Mode.DESTINATION))


@pytest.mark.parametrize("address", ["22", "localhost:22", "127.0.0.1:80", "[::1]:443"])
def test_without_a_list_the_loopback_is_allowed(address: str) -> None:
    assert permits(AllowList.default(), address)


@pytest.mark.parametrize("address", ["/run/docker.sock", "10.0.0.1:22", "localhost.example.com:22", "0.0.0.0:22"])
def test_without_a_list_nothing_else_is(address: str) -> None:
    assert not permits(AllowList.default(), address)


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        ("22", "127.0.0.1:22", "127.0.0.1:23"),
        ("127.0.0.1:22", "22", "10.0.0.1:22"),
        ("plc.local:*", "PLC.local:502", "plc2.local:502"),
        ("[fe80::1]:80", "[fe80::1]:80", "[fe80::1]:81"),
        ("/run/camera.sock", "/run/camera.sock", "/run/camera.sock2"),
    ],
)
def test_with_a_list_what_it_has_is_allowed(entry: str, allowed: str, refused: str) -> None:
    allow = AllowList.parse([entry], "allow")
    assert permits(allow, allowed)
    assert not permits(allow, refused)


def test_an_empty_list_allows_nothing() -> None:
    assert not permits(AllowList.parse([], "allow"), "22")


def test_an_entry_that_is_no_address_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"agent.yml: allow: 'nonsense' is not an address"):
        AllowList.parse(["nonsense"], "agent.yml: allow")


def test_a_service_that_leads_elsewhere_is_named() -> None:
    services = {"SSH1": parse_address("10.0.0.1:22", "test", Mode.DESTINATION), "HTTP1": None}
    with pytest.raises(ConfigurationError, match=r"services: SSH1 leads to 10.0.0.1:22, which the allow list does not"):
        AllowList.default().check(services, "services")
