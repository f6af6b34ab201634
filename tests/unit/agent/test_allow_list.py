# SPDX-License-Identifier: GPL-3.0-or-later
"""Which addresses are allowed."""

from __future__ import annotations

import socket

import pytest

from tunnelproxy.agent.allow_list import AllowList
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.protocol.session import Mode
from tunnelproxy.proxy.addresses import TcpAddress, parse_address


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


@pytest.mark.parametrize(
    ("entries", "service", "found", "permitted"),
    [
        # What the loopback's names lead to.
        (None, "22", "127.0.0.1", True),
        (None, "localhost:22", "::1", True),
        (None, "127.0.0.1:22", "::ffff:127.0.0.1", True),
        (None, "localhost:22", "10.0.0.1", False),
        (None, "localhost:22", "169.254.169.254", False),
        (["22"], "localhost:22", "127.0.0.1", True),
        (["22"], "localhost:23", "127.0.0.1", False),
        # Another host, by its address: there is nothing to look up.
        (["10.0.0.1:80"], "10.0.0.1:80", "10.0.0.1", True),
        (["[::ffff:10.0.0.1]:80"], "[::ffff:10.0.0.1]:80", "::ffff:10.0.0.1", True),
        (["10.0.0.1:80"], "10.0.0.2:80", "10.0.0.2", False),
        (["127.0.0.2:80"], "127.0.0.2:80", "127.0.0.2", True),
        # Another host, by its name.
        (["plc.example:80"], "plc.example:80", "10.0.0.1", True),
        (["plc.example:80"], "PLC.example:80", "fe80::1%eth0", True),
        (["plc.example:80"], "plc.example:81", "10.0.0.1", False),
        *(
            (["plc.example:80", "localhost:443"], "plc.example:80", found, False)
            for found in (
                "127.0.0.1",
                "127.9.9.9",
                "0.0.0.0",
                "::",
                "::1",
                "::ffff:127.0.0.1",
                "::ffff:0:0",
                "224.0.0.1",
            )
        ),
        # One that is this device, where that port of it is allowed too.
        (["plc.example:80", "localhost:80"], "plc.example:80", "127.0.0.1", True),
        # Names that are numbers are names: what they lead to counts.
        (["2130706433:80"], "2130706433:80", "127.0.0.1", False),
        (["0:80"], "0:80", "0.0.0.0", False),
        (["127.1:80"], "127.1:80", "127.0.0.1", False),
        (["plc.example:80"], "plc.example:80", "nonsense", False),
    ],
)
def test_the_very_address_counts_that_is_connected_to(
    entries: list[str] | None, service: str, found: str, permitted: bool
) -> None:
    allow = AllowList.default() if entries is None else AllowList.parse(entries, "allow")
    address = parse_address(service, "test", Mode.DESTINATION)
    assert isinstance(address, TcpAddress)
    assert allow.permits_at(address, found) is permitted


def test_a_name_does_not_lead_to_this_device_by_one_of_its_own_addresses() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no route to other networks")
        own = probe.getsockname()[0]
    allow = AllowList.parse(["plc.example:80"], "allow")
    assert not allow.permits_at(TcpAddress("plc.example", 80), own)
    assert not allow.permits_at(TcpAddress("plc.example", 80), f"::ffff:{own}")
