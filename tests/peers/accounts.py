# SPDX-License-Identifier: GPL-3.0-or-later
"""Users with passwords that exist only on a device: its sshd sees different account files than this machine."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Accounts", "why_impossible"]

_FILES = ("passwd", "shadow", "group")
_UID = 61000


def why_impossible() -> str:
    """Why a process cannot have its own account files on this machine; empty if it can."""
    if os.geteuid() != 0:
        return "only root may give a process its own account files"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"needs a root that may make mount namespaces: {probe.stderr.strip()}" if probe.returncode else ""


class Accounts:
    """Copies of this machine's account files in a folder, with users added.

    Args:
        passwords: passwords by user. ``root`` keeps its account, and gets the password.
        sudoers: sudo's rules; by default, those of this machine.
        homes: different home folders, by user.
    """

    def __init__(
        self,
        folder: Path,
        passwords: dict[str, str],
        *,
        sudoers: str = "",
        homes: Mapping[str, Path] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {f"/etc/{name}": folder / name for name in _FILES}
        for etc, copy in self._files.items():
            copy.write_bytes(Path(etc).read_bytes())
            copy.chmod(Path(etc).stat().st_mode & 0o777)
        if sudoers:
            self._files["/etc/sudoers"] = folder / "sudoers"
            self._files["/etc/sudoers"].write_text(sudoers)
            self._files["/etc/sudoers"].chmod(0o440)
        for user, home in (homes or {}).items():
            self._move(user, home)
        for number, (user, password) in enumerate(passwords.items(), _UID):
            self._add(user, number, password, folder / "home" / user)

    def _move(self, user: str, home: Path) -> None:
        passwd = self._files["/etc/passwd"]
        accounts = [line.split(":") for line in passwd.read_text().splitlines()]
        lines = [
            ":".join([*account[:5], str(home), "/bin/sh"] if account[0] == user else account) for account in accounts
        ]
        passwd.write_text("\n".join([*lines, ""]))

    def _add(self, user: str, number: int, password: str, home: Path) -> None:
        known = {entry.pw_name for entry in pwd.getpwall()}
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=password, capture_output=True, text=True, check=True
        ).stdout.strip()
        shadow = self._files["/etc/shadow"]
        others = [line for line in shadow.read_text().splitlines() if not line.startswith(f"{user}:")]
        shadow.write_text("\n".join([*others, f"{user}:{hashed}:20000:0:99999:7:::", ""]))
        if user not in known:
            home.mkdir(parents=True)
            os.chown(home, number, number)
            with self._files["/etc/passwd"].open("a") as passwd:
                passwd.write(f"{user}:x:{number}:{number}::{home}:/bin/sh\n")
            with self._files["/etc/group"].open("a") as group:
                group.write(f"{user}:x:{number}:\n")

    def command(self, command: Sequence[str | Path]) -> list[str | Path]:
        """Return a command that runs the command in a mount namespace with these account files."""
        mounts = "".join(f"mount --bind {copy} {etc} && " for etc, copy in self._files.items())
        return ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh", *command]
