# SPDX-License-Identifier: GPL-3.0-or-later
"""The authority and the server certificate. ``test_service_openssl`` checks them with openssl."""

from __future__ import annotations

import datetime as dt
import ssl
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from peers.certificate import make_certificate
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.state.certificates import Certificates, now, server_context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path / "keys", tmp_path / "ca")
    made.ensure("127.0.0.1")
    return made


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


def test_a_valid_certificate_is_not_renewed(certificates: Certificates) -> None:
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


def test_a_certificate_of_another_authority_is_reported(certificates: Certificates) -> None:
    make_certificate(certificates.server_chain, "mine", days=365)
    with pytest.raises(ServiceError, match="damaged"):
        certificates.ensure("127.0.0.1")


def test_an_authority_whose_key_is_not_an_ec_key_is_reported(certificates: Certificates) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (certificates.keys / "ca-key.pem").write_bytes(key.private_bytes(*encoding))
    with pytest.raises(ServiceError, match="damaged"):
        certificates.ensure("tunnels.example.org")


def test_an_encrypted_key_is_refused_without_a_question(certificates: Certificates) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(b"secret")
    certificates.server_key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    with pytest.raises(ServiceError, match="the key is encrypted; remove its passphrase"):
        server_context(certificates)


def test_an_authority_is_used_within_its_lifetime_only(tmp_path: Path) -> None:
    def at(days: float) -> Certificates:
        return Certificates(tmp_path / "keys", tmp_path / "ca", lambda: now() + dt.timedelta(days=days))

    at(0).ensure("127.0.0.1")
    with pytest.raises(ServiceError, match=r"ca\.pem has expired on "):
        at(3651).ensure("127.0.0.1")
    with pytest.raises(ServiceError, match=r"ca\.pem is not valid before .*: set the clock"):
        at(-1).ensure("127.0.0.1")


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
