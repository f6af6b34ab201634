# SPDX-License-Identifier: GPL-3.0-or-later
"""How users say where a service listens."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def parse_ports():
    return importlib.import_module("ansible_collections.iotops.tunnel.plugins.module_utils._ports").parse_ports


def test_a_port_any_port_and_no_port(parse_ports):
    assert parse_ports([]) == ({}, [])
    ports = {"HTTP1": 5555, "HTTP2": 0, "HTTP3": None}
    assert parse_ports(["HTTP1=5555", "HTTP2=any", "HTTP3=off"]) == (ports, [])


@pytest.mark.parametrize(
    "choices",
    [["HTTP1=5555,any-host", "VNC1=any"], ["HTTP1=5555", "any-host", "VNC1=any"], ["HTTP1=5555, any-host, VNC1=any"]],
)
def test_a_port_for_any_host_however_ansible_cuts_the_list(parse_ports, choices):
    assert parse_ports(choices) == ({"HTTP1": 5555, "VNC1": 0}, ["HTTP1"])


@pytest.mark.parametrize(
    "choices", [["any-host"], ["VNC1=any,any-host"], ["HTTP1=off,any-host"], ["any-host,HTTP1=any"]]
)
def test_any_host_follows_a_port_for_http(parse_ports, choices):
    with pytest.raises(ValueError, match="'any-host' must follow the port of an HTTP service"):
        parse_ports(choices)


@pytest.mark.parametrize(
    "choice", ["HTTP1", "=5555", "HTTP1=", "HTTP1=0", "HTTP1=65536", "HTTP1=²", "HTTP1=-1", "HTTP1=no", "HT TP=1", 5555]
)
def test_what_is_no_choice(parse_ports, choice):
    with pytest.raises(ValueError, match=r"not a valid port|cannot be the name of a service"):
        parse_ports([choice])


def test_two_services_cannot_have_one_port(parse_ports):
    with pytest.raises(ValueError, match="Port 5555 is given to two services"):
        parse_ports(["HTTP1=5555", "HTTP2=5555"])
