# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenSSL's name hash. ``test_service_openssl`` compares it with the openssl program."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tunnelproxy.service.state.subject_hash import subject_hash

OIDS = [NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["iotops tunneling service CA 0a1b2c3d"], "e16d8e2b"),
        (["  Two  Spaces\tand a Tab "], "93a61317"),
        (["Größe ÄÖÜ"], "61b6448e"),
        (["Example Corp", "CA"], "b1796b5a"),
        (["x" * 60, "y" * 60, "z" * 60], "6cba9563"),
    ],
)
def test_it_is_what_openssl_computes(values: list[str], expected: str) -> None:
    assert subject_hash(x509.Name([x509.NameAttribute(oid, value) for oid, value in zip(OIDS, values)])) == expected
