# SPDX-License-Identifier: Apache-2.0
"""The account of each access key; a key never moves to another account.

The hub saves them in a file, so it asks only once for each key, and the next hub finds the tunnels of the previous one
even while the control API cannot be reached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import json_lines

__all__ = ["KnownAccounts"]

PAIR = 2


class KnownAccounts(Mapping[str, str]):
    """The keys of accounts, by a digest of the access key, region and endpoint that determine them.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.file = json_lines.JsonLinesFile(path, self._lines)
        self._known: dict[str, str] = {
            str(value[0]): str(value[1])
            for value in json_lines.read(path)
            if isinstance(value, list) and len(value) == PAIR
        }

    def __getitem__(self, digest: str) -> str:
        return self._known[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, digest: str, account: str) -> None:
        """Add an account, and save it."""
        if self._known.get(digest) == account:
            return
        self._known[digest] = account
        self.file.save()

    def _lines(self) -> Iterator[str]:
        return (json.dumps(pair) for pair in self._known.items())
