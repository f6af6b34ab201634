# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenSSL's name hash, against figures from the openssl program."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tunnelproxy.service.state.subject_hash import subject_hash


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
@pytest.mark.parametrize(
    "values",
    [
        ["iotops tunneling service CA 0a1b2c3d"],
        ["  Two  Spaces\tand a Tab "],
        ["Größe ÄÖÜ"],
        ["Example Corp", "CA"],
        ["x" * 60, "y" * 60, "z" * 60],
    ],
)
def test_it_is_what_openssl_computes(values: list[str], tmp_path: Path) -> None:
    oids = [NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME]
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in zip(oids, values)])
    file = tmp_path / "certificate.pem"
    file.write_bytes(self_signed(name).public_bytes(serialization.Encoding.PEM))
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(file)]
    assert subject_hash(name) == subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def self_signed(name: x509.Name) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
