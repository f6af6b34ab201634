# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's files, read by the openssl program and a POSIX shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from tunnelproxy.service.client_environment import export_lines
from tunnelproxy.service.state import certificates as module
from tunnelproxy.service.state.certificates import Certificates
from tunnelproxy.service.state.subject_hash import subject_hash

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path / "keys", tmp_path / "ca")
    made.ensure("127.0.0.1")
    return made


def openssl(*arguments: str | Path) -> str:
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, text=True).stdout.strip()


@needs_openssl
def test_openssl_verifies_strictly_with_the_hashed_directory(certificates: Certificates) -> None:
    said = openssl("verify", "-x509_strict", "-CApath", certificates.ca, "-no-CAfile", certificates.server_chain)
    assert said.endswith(": OK")


@needs_openssl
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
def test_the_hash_of_a_name_is_the_one_that_openssl_computes(values: list[str], tmp_path: Path) -> None:
    oids = [NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME]
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in zip(oids, values)])
    file = tmp_path / "certificate.pem"
    key = module.ec.generate_private_key(module.ec.SECP256R1())
    expires = module.now() + module.dt.timedelta(days=1)
    certificate = module._builder(name, name, key.public_key(), module.now(), expires).sign(key, module.hashes.SHA256())
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    assert subject_hash(name) == openssl("x509", "-hash", "-noout", "-in", file)


def test_a_shell_reads_the_exported_values_unchanged() -> None:
    value = 'it\'s "$HOME" `a`\\'
    script = export_lines({"A": value}) + 'printf %s "$A"'
    assert subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout == value
