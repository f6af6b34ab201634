# SPDX-License-Identifier: Apache-2.0
"""The tags of a tunnel that the collection opened: that it did, and for whom."""

from __future__ import annotations

import os
import re

__all__ = ["MANAGED_TAGS", "OWNER_TAG", "OWNER_VARIABLE", "default_owner", "valid_owner"]

MANAGED_TAGS = {"iotops:managed-by": "iotops.tunnel"}
OWNER_TAG = "iotops:owner"
OWNER_VARIABLE = "IOTOPS_TUNNEL_OWNER"

# What AWS allows in a tag's value.
_UNFIT = re.compile(r"[^A-Za-z0-9 +=._:/@-]+")
_LONGEST = 256


def default_owner() -> str:
    """Who opens tunnels where nobody says: this user on this machine."""
    import pwd

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return valid_owner(f"{user}@{os.uname().nodename}")


def valid_owner(text: str) -> str:
    """A text as the value of a tag may be."""
    return _UNFIT.sub("-", text).strip()[:_LONGEST]
