# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that cannot be reached, and certificates that do not hold."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from time import time

import pytest

from peers.aws_failures import (
    KEYS,
    Shell,
    answering,
)
from peers.certificate import make_server_certificate
from peers.process import free_port
from tunnelproxy.net.certificate_dates import date_text
from tunnelproxy.service.state.certificates import Certificates, server_context


def test_a_port_where_nothing_listens(shell: Shell) -> None:
    shell.export(**KEYS)
    sentence = (
        f"{shell.endpoint} cannot be reached (Connection refused): check that the service runs there, "
        "AWS_ENDPOINT_URL_IOTSECURETUNNELING, and this machine's network"
    )
    assert shell.tells() == ("EndpointConnectionError", "control-api", sentence)


def test_a_server_that_says_nothing(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url)
        sentence = (
            f"{url} did not answer properly (Read timed out. (read timeout=1)): check "
            "AWS_ENDPOINT_URL_IOTSECURETUNNELING, or try again later"
        )
        assert shell.tells() == ("ReadTimeoutError", "control-api", sentence)


def test_a_server_that_hangs_up(shell: Shell) -> None:
    with answering(0) as server:
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=server.url)
        sentence = (
            f"{server.url} did not answer properly (Remote end closed connection without response): check "
            "AWS_ENDPOINT_URL_IOTSECURETUNNELING, or try again later"
        )
        assert shell.tells() == ("ConnectionClosedError", "control-api", sentence)


@pytest.mark.parametrize(
    ("scheme", "variable", "value"),
    [
        ("http", "http_proxy", "http://127.0.0.1:{}"),
        ("https", "https_proxy", "http://me:geheim@127.0.0.1:{}"),
        ("https", "HTTPS_PROXY", "http://127.0.0.1:{}"),
    ],
)
def test_a_web_proxy_that_is_not_there(shell: Shell, scheme: str, variable: str, value: str) -> None:
    port = free_port()
    url = shell.endpoint.replace("http:", f"{scheme}:")
    shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url, **{variable: value.format(port)})
    sentence = (
        f"the HTTP proxy http://127.0.0.1:{port} does not connect to {url} (Connection refused): check {variable} and "
        "no_proxy"
    )
    assert shell.tells() == ("ProxyConnectionError", "control-api", sentence)


def test_a_web_proxy_that_wants_a_password(shell: Shell) -> None:
    url = shell.endpoint.replace("http:", "https:")
    with answering(407) as proxy:
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url, https_proxy=proxy.url)
        sentence = (
            f"the HTTP proxy {proxy.url} does not connect to {url} (Tunnel connection failed: 407 Proxy Authentication "
            "Required): check https_proxy and no_proxy"
        )
        assert shell.tells() == ("ProxyConnectionError", "control-api", sentence)


@pytest.fixture(scope="module")
def tls(certificates: Certificates) -> ssl.SSLContext:
    return server_context(certificates)


def test_a_certificate_of_an_authority_that_is_not_known(shell: Shell, tls: ssl.SSLContext) -> None:
    with answering(200, tls=tls) as server:
        url = server.url.replace("http:", "https:")
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url)
        sentence = f"the certificate of {url} is not trusted here: set AWS_CA_BUNDLE to its authority's certificate"
        assert shell.tells() == ("SSLError", "not-trusted", sentence)


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "no PEM"])
def test_a_bundle_that_cannot_be_used(shell: Shell, tls: ssl.SSLContext, tmp_path: Path, content: str | None) -> None:
    bundle = tmp_path / "ca.pem"
    if content:
        bundle.write_text(content)
    with answering(200, tls=tls) as server:
        url = server.url.replace("http:", "https:")
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url, AWS_CA_BUNDLE=str(bundle))
        raised, code, sentence = shell.tells()
    assert (raised, code) == ("SSLError", "bad-input")
    assert sentence.startswith(f"the CA bundle {bundle} cannot be used (")
    assert sentence.endswith("): set AWS_CA_BUNDLE to a file of PEM certificates")


@pytest.mark.parametrize(
    ("address", "days", "sentence"),
    [
        (
            "127.0.0.1",
            (-3, -1),
            "the certificate of {} has expired: this machine's clock says {}: renew the certificate, or set the clock "
            "(NTP) if it is wrong",
        ),
        (
            "127.0.0.1",
            (1, 3),
            "the certificate of {} is not valid yet: this machine's clock says {}: set the clock (NTP) if it is wrong",
        ),
        (
            "127.0.0.2",
            (-1, 1),
            "the certificate of {} is for another name: check AWS_ENDPOINT_URL_IOTSECURETUNNELING",
        ),
    ],
    ids=["expired", "not yet valid", "another name"],
)
def test_a_certificate_that_does_not_hold(
    shell: Shell, tmp_path: Path, address: str, days: tuple[int, int], sentence: str
) -> None:
    bundle = tmp_path / "server.pem"
    with answering(200, tls=own_context(bundle, address, *days)) as server:
        url = server.url.replace("http:", "https:")
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url, AWS_CA_BUNDLE=str(bundle))
        raised, code, told = shell.tells()
    assert (raised, code) == ("SSLError", "not-trusted")
    assert told in {sentence.format(url, date_text(time() - seconds)) for seconds in (0, 59)}


def own_context(path: Path, address: str, start: int, end: int) -> ssl.SSLContext:
    """A server's TLS with a certificate of its own, for an address, from some days from now until others."""
    make_server_certificate(path, start, end, address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_a_server_without_tls(shell: Shell) -> None:
    with answering(200) as server:
        url = server.url.replace("http:", "https:")
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url)
        raised, code, sentence = shell.tells()
    assert (raised, code) == ("SSLError", "control-api")
    assert sentence.startswith(f"the TLS handshake with {url} failed (")
    assert sentence.endswith("): check AWS_ENDPOINT_URL_IOTSECURETUNNELING and the HTTP proxy")
