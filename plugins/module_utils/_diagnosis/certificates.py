# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When certificates expire. The device may lack the openssl command and Python's ssl module, so DER is parsed here.

Of the structure in RFC 5280, section 4.1, only the names and the validity are parsed. Nothing is verified.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import base64
import binascii
import glob
import os
import re
import time
from calendar import timegm

from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.reading import Unavailable, read_text

__all__ = ["certificates", "read_certificate"]

MOST = 40
FILE_LIMIT = 256 * 1024

_PEM = re.compile(r"-----BEGIN (?:TRUSTED )?CERTIFICATE-----(.*?)-----END", re.DOTALL)

SEQUENCE, SET, OBJECT_IDENTIFIER = 0x30, 0x31, 0x06
VERSION, UTC_TIME, GENERALIZED_TIME, BMP_STRING = 0xA0, 0x17, 0x18, 0x1E
COMMON_NAME = b"\x55\x04\x03"
ORGANIZATION = b"\x55\x04\x0a"


def certificates(paths: list) -> dict:
    """Return the certificates in PEM files, by expiry date, with names and days left. Keys are not parsed.

    Args:
        paths: files on the device, which may contain wildcards. Missing ones are listed as absent.
    """
    found, absent, skipped = [], [], []
    for pattern in paths:
        files = sorted(glob.glob(pattern))
        if not files:
            absent.append(pattern)
        for path in filter(os.path.isfile, files):
            try:
                found += _in_file(path)
            except Unavailable as error:
                skipped.append(str(error))
    found.sort(key=lambda row: row["days_left"])
    if len(found) > MOST:
        skipped.append(f"{len(found) - MOST} more certificates")
    facts: dict = {"certificates": found[:MOST], "absent": absent}
    if skipped:
        facts["skipped"] = skipped[:MOST]
    return facts


def _in_file(path: str) -> list:
    blocks = _PEM.findall(read_text(path, FILE_LIMIT))
    if not blocks:
        raise Unavailable(f"{path} contains no PEM certificate")
    rows = []
    for block in blocks:
        try:
            row = read_certificate(base64.b64decode(block))
        except (ValueError, binascii.Error) as error:
            raise Unavailable(f"{path} contains an invalid certificate: {error}") from None
        now = time.time()
        rows.append(
            {
                "path": path,
                "subject": row["subject"],
                "issuer": row["issuer"],
                "not_before": _iso(row["not_before"]),
                "not_after": _iso(row["not_after"]),
                "days_left": round((row["not_after"] - now) / 86400, 1),
                "days_until_valid": max(0.0, round((row["not_before"] - now) / 86400, 1)),
            }
        )
    return rows


def read_certificate(der: bytes) -> dict:
    """Return subject, issuer, and start and end of the validity in seconds since 1970. Raise ValueError if invalid."""
    (certificate,) = _children(der, SEQUENCE)[:1] or [(0, b"")]
    fields = [field for field in _elements(_content(certificate, SEQUENCE)) if field[0] != VERSION]
    if len(fields) < 5:
        raise ValueError("it ends too early")
    _serial, _algorithm, issuer, validity, subject = fields[:5]
    moments = _elements(_content(validity, SEQUENCE))
    if len(moments) != 2:
        raise ValueError("its validity does not have two dates")
    return {
        "issuer": _name(issuer),
        "subject": _name(subject),
        "not_before": _moment(*moments[0]),
        "not_after": _moment(*moments[1]),
    }


def _elements(data: bytes) -> list:
    """Return the tag and content of each element; see X.690, section 8.1."""
    found, position = [], 0
    while position < len(data):
        if position + 2 > len(data):
            raise ValueError("it ends too early")
        tag, length = data[position], data[position + 1]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4 or position + size > len(data):
                raise ValueError("it has an invalid length")
            length = int.from_bytes(data[position : position + size], "big")
            position += size
        if position + length > len(data):
            raise ValueError("it ends too early")
        found.append((tag, data[position : position + length]))
        position += length
    return found


def _children(data: bytes, tag: int) -> list:
    elements = _elements(data)
    if not elements:
        raise ValueError("it is empty")
    return _elements(_content(elements[0], tag))


def _content(element: tuple, tag: int) -> bytes:
    if element[0] != tag:
        raise ValueError(f"it has the tag {element[0]:#04x} instead of {tag:#04x}")
    return element[1]


def _name(element: tuple) -> str:
    """Return the common name, or else the organization, of a distinguished name."""
    values: dict = {}
    for relative in _elements(_content(element, SEQUENCE)):
        for attribute in _elements(_content(relative, SET)):
            parts = _elements(_content(attribute, SEQUENCE))
            if len(parts) == 2 and parts[0][0] == OBJECT_IDENTIFIER:
                values.setdefault(parts[0][1], _string(*parts[1]))
    return values.get(COMMON_NAME) or values.get(ORGANIZATION) or "(no name)"


def _string(tag: int, content: bytes) -> str:
    return content.decode("utf-16-be" if tag == BMP_STRING else "utf-8", "replace")


def _moment(tag: int, content: bytes) -> int:
    """Return a time in seconds since 1970. By RFC 5280, section 4.1.2.5, it is in UTC, with seconds."""
    text = content.decode("ascii", "replace")
    if tag == UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != GENERALIZED_TIME:
        raise ValueError("its validity has an unknown date format")
    return timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def _iso(moment: int) -> str:
    days, seconds = divmod(moment, 86400)
    # A certificate that does not expire is valid until 9999, the last year that the format can represent.
    days = min(days, 2932896)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(days * 86400 + seconds))
