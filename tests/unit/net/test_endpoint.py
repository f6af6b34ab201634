# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tunnelproxy.errors import ConfigurationError
from tunnelproxy.net.endpoint import Endpoint, tls_context


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("us-east-1", "data.tunneling.iot.us-east-1.amazonaws.com"),
        ("us-gov-west-1", "data.tunneling.iot.us-gov-west-1.amazonaws.com"),
        ("cn-north-1", "data.tunneling.iot.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_each_region_has_its_endpoint(region: str, host: str) -> None:
    assert Endpoint.of_region(region) == Endpoint(host, 443)


@pytest.mark.parametrize("region", ["", "mars", "us-east", "US-EAST-1", "us-east-1.evil.example", "us-east-1\n"])
def test_what_is_no_region_is_refused(region: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an AWS region: give one like us-east-1"):
        Endpoint.of_region(region)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("example.com", Endpoint("example.com", 443)),
        ("127.0.0.1:8443", Endpoint("127.0.0.1", 8443)),
        ("[::1]:8443", Endpoint("::1", 8443)),
    ],
)
def test_an_endpoint_is_a_host_with_or_without_port(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize("text", ["", ":443", "host:0", "host:99999", "https://host", "host/path", "a b"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an endpoint: give HOST or HOST:PORT"):
        Endpoint.parse(text)


def test_certificates_are_checked_and_tls_is_recent() -> None:
    context = tls_context(None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unusable_capath_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"cannot read certificate authorities from '.*ca\.pem'.*--capath"):
        tls_context(str(path))
