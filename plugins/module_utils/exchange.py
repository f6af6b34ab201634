# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file of mode 0600 between an action plugin and the module that it runs beside itself on the controller.

A module's arguments and its output pass through Ansible's debug log; AWS keys and access tokens may not. They go
through this file: the action plugin puts the environment in, the module puts tokens in, the action plugin takes those.
"""

from __future__ import annotations

import json
import os

EXCHANGE_VARIABLE = "IOTOPS_TUNNEL_EXCHANGE"
"""The environment variable that tells the module the file's path."""


class Exchange:
    """The private file at C(path), which its creator has made with mode 0600."""

    def __init__(self, path: str) -> None:
        self.path = path

    def environment(self) -> dict[str, str]:
        """AWS connection parameters, by the names of their environment variables."""
        return self._read().get("environment", {})

    def tokens(self) -> dict[str, str]:
        """Access tokens by the end that they are for: C(source), C(destination)."""
        return self._read().get("tokens", {})

    def put_environment(self, environment: dict[str, str]) -> None:
        """Store what the module needs in order to reach the control API."""
        self._update({"environment": environment})

    def put_tokens(self, tokens: dict[str, str]) -> None:
        """Store tokens at once, so that they survive a module which fails afterwards."""
        self._update({"tokens": {**self.tokens(), **tokens}})

    def _read(self) -> dict:
        with open(self.path, encoding="utf-8") as file:
            return json.loads(file.read() or "{}")

    def _update(self, changes: dict) -> None:
        content = {**self._read(), **changes}
        descriptor = os.open(self.path, os.O_WRONLY | os.O_TRUNC)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
