# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages in ``docs/troubleshooting.md``, which tests compare with actual ones."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from .process import REPOSITORY

__all__ = ["Row", "assert_documented", "rows"]

_ROW = re.compile(r"^\| (?P<cause>[^|]+?) \| `(?P<message>[^|`]+)` \| (?P<remedy>[^|]+?) \|$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\b[A-Z]{4,}[0-9]?\b|…")
# Words in capitals that are not placeholders.
_WORDS = {"HTTP1", "SSH1", "HTTP", "HTTPS"}


@dataclass(frozen=True)
class Row:
    """One row: words in capitals, such as THING, and "…" are placeholders."""

    cause: str
    message: str
    remedy: str

    def matches(self, said: str) -> bool:
        """Whether this text matches the whole message."""
        parts, at = [], 0
        for found in _PLACEHOLDER.finditer(self.message):
            parts.append(re.escape(self.message[at : found.start()]))
            parts.append(re.escape(found[0]) if found[0] in _WORDS else ".+?")
            at = found.end()
        parts.append(re.escape(self.message[at:]))
        return re.fullmatch("".join(parts), said, re.DOTALL) is not None


@functools.cache
def rows() -> dict[str, Row]:
    """The rows of all tables of the page, by cause."""
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    found = [Row(**match.groupdict()) for match in _ROW.finditer(text)]
    assert len({row.cause for row in found}) == len(found), "two rows for one cause"
    return {row.cause: row for row in found}


def assert_documented(cause: str, said: str) -> None:
    """Check that the page has exactly this message for a cause."""
    # The prefix of messages in ansible-core 2.19 and newer.
    said = said.removeprefix("Task failed: ")
    row = rows()[cause]
    assert row.matches(said), f"docs/troubleshooting.md has for {cause!r}:\n{row.message}\nbut the message is:\n{said}"
    others = [other.cause for other in rows().values() if other is not row and other.matches(said)]
    assert others == [], f"{said!r} also matches {others}"
