# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of things and services: what AWS IoT allows, checked before a name reaches a command line or a call.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import re

# ThingName and Service in botocore's iotsecuretunneling model. A leading "-" is allowed there, but ssh would parse the
# name as an option. A copy of SAFE_NAME in tunnelproxy/names.py: modules are sent to a Python that may not have it.
_NAME = re.compile(r"(?!-)[a-zA-Z0-9:_-]{1,128}\Z")


def valid_name(kind: str, name: str) -> str:
    """Return C(name), or raise ValueError with a message. C(kind) is what is named: thing or service."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ValueError(
            f"{name!r} cannot be the name of a {kind}: use 1 to 128 letters, digits, colons, underscores and "
            "hyphens, and no hyphen at the start."
        )
    return name
