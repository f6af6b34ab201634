# SPDX-License-Identifier: GPL-3.0-or-later
"""The authority and the server certificate, checked by OpenSSL itself."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.state.certificates import Certificates, server_context

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path / "keys", tmp_path / "ca")
    made.ensure("127.0.0.1")
    return made


def openssl(*arguments: str | Path) -> str:
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, text=True).stdout.strip()


@needs_openssl
def test_strict_verification_finds_the_authority_in_the_hashed_directory(certificates: Certificates) -> None:
    said = openssl("verify", "-x509_strict", "-CApath", certificates.ca, "-no-CAfile", certificates.server_chain)
    assert said.endswith(": OK")


@needs_openssl
def test_the_hashed_name_is_the_one_that_openssl_computes(certificates: Certificates) -> None:
    subject_hash = openssl("x509", "-hash", "-noout", "-in", certificates.ca / "ca.pem")
    assert (certificates.ca / f"{subject_hash}.0").read_bytes() == (certificates.ca / "ca.pem").read_bytes()


def test_python_accepts_the_chain_with_strict_checks(certificates: Certificates) -> None:
    client = ssl.create_default_context(capath=str(certificates.ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("127.0.0.1", "localhost", "::1"):
        assert handshake(client, server_context(certificates), name) in ("TLSv1.2", "TLSv1.3")


def test_a_new_host_gets_a_new_server_certificate_from_the_same_authority(certificates: Certificates) -> None:
    authority = (certificates.ca / "ca.pem").read_bytes()
    before = certificates.server_chain.read_bytes()
    certificates.ensure("tunnels.example.org")
    assert certificates.server_chain.read_bytes() != before
    assert (certificates.ca / "ca.pem").read_bytes() == authority
    client = ssl.create_default_context(cafile=str(certificates.ca / "ca.pem"))
    assert handshake(client, server_context(certificates), "tunnels.example.org")


def test_nothing_is_made_anew_without_a_reason(certificates: Certificates) -> None:
    before = certificates.server_chain.read_bytes()
    certificates.ensure("127.0.0.1")
    assert certificates.server_chain.read_bytes() == before


def test_keys_are_for_the_owner_only_and_not_where_clients_look(certificates: Certificates) -> None:
    keys = [certificates.server_key, certificates.keys / "ca-key.pem"]
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)
    assert not any(b"PRIVATE KEY" in file.read_bytes() for file in certificates.ca.iterdir())


def test_a_damaged_certificate_is_reported_with_its_place(certificates: Certificates) -> None:
    certificates.server_chain.write_text("no certificate")
    with pytest.raises(ServiceError, match="damaged"):
        certificates.ensure("127.0.0.1")


@needs_openssl
def test_so_is_one_that_somebody_else_has_made(certificates: Certificates) -> None:
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=mine"]
    openssl(*new, "-keyout", certificates.server_key, "-out", certificates.server_chain)
    with pytest.raises(ServiceError, match="damaged"):
        certificates.ensure("127.0.0.1")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str | None:
    """Do a TLS handshake in memory and return the version agreed on."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    pending = [ours, theirs]
    while pending:
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                continue
    return ours.version()
