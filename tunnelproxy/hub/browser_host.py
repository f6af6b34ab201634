# SPDX-License-Identifier: Apache-2.0
"""The host name of a device in browsers: ``pump-7.localhost``.

Browsers keep cookies by host name, regardless of the port. So no two things may have the same name, and no name may be
a subdomain of another: each is a single label below ``.localhost``, for which no page may set a cookie.
"""

from __future__ import annotations

import base64
import hashlib
import re

from .account import TunnelKey

__all__ = ["browser_host"]

_PLAIN = re.compile(r"(?!xn--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")  # browsers decode labels that begin with xn--
_DIGEST_LENGTH = 11
_WITH_DIGEST = re.compile(r"(?:.*-)?x[a-z2-7]{11}\Z")
_LONGEST_BEGINNING = 63 - 1 - 1 - _DIGEST_LENGTH


def browser_host(key: TunnelKey, *, is_first: bool) -> str:
    """The host name of a thing: permanent and unique.

    Args:
        is_first: whether no thing of another account, or in another spelling, has the plain name.
    """
    thing = key.thing
    if is_first and _PLAIN.match(thing) and not _WITH_DIGEST.match(thing):
        return f"{thing}.localhost"
    beginning = re.sub(r"[^a-z0-9]+", "-", thing.lower()).strip("-")[:_LONGEST_BEGINNING].strip("-")
    digest = hashlib.sha256(f"{key.account.key}\n{thing}".encode()).digest()
    told_apart = "x" + base64.b32encode(digest).decode().lower()[:_DIGEST_LENGTH]
    return f"{beginning}-{told_apart}.localhost" if beginning else f"{told_apart}.localhost"
