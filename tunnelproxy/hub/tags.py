# SPDX-License-Identifier: Apache-2.0
"""The tags of tunnels that the collection opens: the collection's mark, and the owner."""

from __future__ import annotations

import os

__all__ = ["MANAGED_TAGS", "OWNER_TAG", "OWNER_VARIABLE", "default_owner", "valid_owner"]

MANAGED_TAGS = {"iotops:managed-by": "iotops.tunnel"}
OWNER_TAG = "iotops:owner"
OWNER_VARIABLE = "IOTOPS_TUNNEL_OWNER"

_LONGEST = 256


def default_owner() -> str:
    """The default owner of tunnels: this user on this machine."""
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return valid_owner(f"{user}@{os.uname().nodename}")


def valid_owner(text: str) -> str:
    """Convert a text to a valid value of a tag; different texts get different values.

    Source: botocore's model, ``TagValue``: letters, numbers, separators, and ``_.:/=+-@``.
    """
    text = text.strip()
    fit = "".join(char if _is_fit(char) else "-" for char in text)
    if fit == text and len(fit) <= _LONGEST:
        return fit
    import hashlib

    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{fit[: _LONGEST - len(digest) - 1]}-{digest}"


def _is_fit(char: str) -> bool:
    import unicodedata

    return char in "_.:/=+-@" or unicodedata.category(char)[0] in "LNZ"
