# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates with names and dates of a test's choice."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

__all__ = ["make_certificate"]


def make_certificate(path: Path, common_name: str, days: float, starts: float = -1) -> Path:
    """Write a certificate of its own authority that expires after some days, and return its path.

    Args:
        path: the file.
        common_name: of its subject and its issuer.
        days: how long it is valid from now; less than none for one that has expired.
        starts: from how many days from now it is valid.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=min(starts, days - 1)))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path
