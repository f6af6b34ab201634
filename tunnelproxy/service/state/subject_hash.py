# SPDX-License-Identifier: Apache-2.0
"""The file names that OpenSSL looks for in a directory of certificates.

A client that is given a directory (``-CApath``, ``--capath``) opens ``<hash>.0``, with a hash of the certificate's
subject in a canonical form. It is computed here, so that the service does not need the ``openssl`` program.
Source: ``X509_NAME_hash_ex`` and ``x509_name_canon`` of OpenSSL (crypto/x509).
"""

from __future__ import annotations

import hashlib

from cryptography import x509

__all__ = ["subject_hash"]


def subject_hash(name: x509.Name) -> str:
    """The eight hexadecimal digits by which OpenSSL 1.0 and newer finds a certificate with a subject.

    Args:
        name: a subject whose attributes are encoded as UTF8String, as in all certificates issued here.
    """
    canonical = x509.Name(
        x509.RelativeDistinguishedName(x509.NameAttribute(item.oid, _canonical(item.value)) for item in part)
        for part in name.rdns
    )
    content = _without_header(canonical.public_bytes())
    # OpenSSL uses SHA-1 for the file name; nothing depends on its security.
    start = hashlib.sha1(content, usedforsecurity=False).digest()[:4]
    return f"{int.from_bytes(start, 'little'):08x}"


def _canonical(value: str | bytes) -> str:
    text = value.decode() if isinstance(value, bytes) else value
    # Only ASCII letters are folded and only ASCII spaces are collapsed.
    folded = "".join(char.lower() if char.isascii() else char for char in text)
    return " ".join(folded.split())


def _without_header(der: bytes) -> bytes:
    """The content of a DER element: OpenSSL hashes the name without its outer SEQUENCE."""
    length_bytes = der[1] & 0x7F if der[1] & 0x80 else 0
    return der[2 + length_bytes :]
