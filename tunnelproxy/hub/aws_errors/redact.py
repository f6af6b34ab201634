# SPDX-License-Identifier: Apache-2.0
"""Makes the output of other programs safe for a sentence: short, printable, and without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["MOST_WORDS", "redact"]


MOST_WORDS = 400
_SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_SHORTEST_SECRET = 8
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SECRETS = re.compile(
    r"(?P<arn>\barn:aws[^\s,;]*)"  # names of things, which are no secrets, but may look like a key
    r"|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}"  # access key IDs
    r"|\beyJ[\w-]{10,}(?:\.[\w-]*)*"  # JSON web tokens
    r"|(?<=://)[^\s/@]+@"  # the user and password in a URL
    # Secret access keys and session tokens: long, with digits and letters of both cases.
    r"|(?<![A-Za-z0-9/+=])(?=[a-z0-9/+=]*[A-Z])(?=[A-Z0-9/+=]*[a-z])(?=[A-Za-z/+=]*[0-9])[A-Za-z0-9/+=]{40,}"
)


def redact(text: str, environment: Mapping[str, str], limit: int = MOST_WORDS) -> str:
    """The output of another program on one line, printable, no longer than a limit, and without secrets.

    Args:
        environment: the caller's; the values of its secret variables are removed, too.
    """
    for name in _SECRET_VARIABLES:
        secret = environment.get(name, "")
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    text = _SECRETS.sub(lambda found: found["arn"] or "***", _COLOURS.sub("", text))
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split()).rstrip(". ")
    # Programs print the reason last.
    return text if len(text) <= limit else "…" + text[1 - limit :]
