# SPDX-License-Identifier: GPL-3.0-or-later
"""The URL of a broker, and what is remembered of it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.mqtt.broker_address import BrokerAddress
from tunnelproxy.service.state.certificates import Certificates


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtts://joe@broker.example.com", BrokerAddress("broker.example.com", 8883, True, "joe")),
        ("mqtts://b:443/", BrokerAddress("b", 443)),
        ("mqtt://localhost", BrokerAddress("localhost", 1883, False)),
        ("mqtts://a%40b@[::1]:8884", BrokerAddress("::1", 8884, True, "a@b")),
    ],
)
def test_urls_are_read(url: str, expected: BrokerAddress) -> None:
    assert BrokerAddress.parse(url, "") == expected


@pytest.mark.parametrize(
    "url", ["", "b:8883", "https://b", "mqtts://", "mqtts://b:x", "mqtts://b:99999", "mqtts://b/c"]
)
def test_others_are_refused(url: str) -> None:
    with pytest.raises(ServiceError, match="is not like mqtts://USER@HOST:8883"):
        BrokerAddress.parse(url, "")


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    for url in ("mqtts://joe:HIDDEN@b", "tcp://joe:HIDDEN@b"):
        with pytest.raises(ServiceError) as caught:
            BrokerAddress.parse(url, "")
        assert "HIDDEN" not in str(caught.value)


def test_it_is_remembered(tmp_path: Path) -> None:
    assert BrokerAddress.read(tmp_path / "broker.json") is None
    address = BrokerAddress.parse("mqtts://joe@[::1]:1", "/ca")
    address.write(tmp_path / "broker.json")
    assert BrokerAddress.read(tmp_path / "broker.json") == address
    assert address.url == "mqtts://[::1]:1"


@pytest.mark.parametrize("content", ["", "7", '{"what": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "broker.json").write_text(content)
    with pytest.raises(ServiceError, match=r"broker\.json is damaged"):
        BrokerAddress.read(tmp_path / "broker.json")


def test_an_authority_makes_no_sense_without_tls() -> None:
    with pytest.raises(ServiceError, match="--mqtt-ca has no effect with mqtt://"):
        BrokerAddress.parse("mqtt://b", "/ca")


def test_without_encryption_there_is_no_tls_context() -> None:
    assert BrokerAddress("b", 1883, encrypted=False).tls_context() is None


def test_the_authority_is_a_file_a_directory_or_the_systems(certificates: Certificates) -> None:
    for ca in (str(certificates.authority), str(certificates.ca), ""):
        context = BrokerAddress("b", 8883, ca=ca).tls_context()
        assert context is not None
        assert context.verify_mode == ssl.CERT_REQUIRED


def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"--mqtt-ca: cannot read a certificate from .*/none"):
        BrokerAddress("b", 8883, ca=str(tmp_path / "none")).tls_context()
