# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of ssh about host keys, and what the connection plugin makes of them."""

from __future__ import annotations

import importlib
from pathlib import Path

__all__ = ["FAILED", "KEY", "STRICT", "HostKeys"]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBrPGWd5+6KA3EDlcF4TQh565Fi5Y1zeDMDrYvQBoIBC"
FAILED = "Host key verification failed."
STRICT = "No ED25519 host key is known for gw and you have requested strict checking."


class HostKeys:
    """A file of known hosts. The collection must be importable.

    Args:
        folder: for the file.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "known_hosts"

    def explain(self, *lines: str, known: str = "") -> str | None:
        """Explain lines of ssh's log, with a line of known hosts."""
        package = "ansible_collections.iotops.tunnel.plugins.plugin_utils"
        host_key, ssh_log = (importlib.import_module(f"{package}.{name}") for name in ("_ssh_host_key", "_ssh_log"))
        self._file.write_text(known)
        log = ssh_log.SshLog("".join(f"{line}\r\n" for line in lines))
        explanation: str | None = host_key.explain_host_key(
            log, "gw", "gw", lambda: {"userknownhostsfile": f"/nowhere {self._file}"}
        )
        return explanation
