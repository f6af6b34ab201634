# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether modules can be sent to a device on the standard input of sudo, which has no terminal then.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import time
from collections.abc import Callable

REMEMBERED_SECONDS = 3600.0
"""For how long a device is not asked again. Its sudoers file may change."""

# sudo, with Defaults requiretty: before it asks for a password, and before it runs anything.
_REFUSAL = b"must have a tty"


def sudo_requires_tty(folder: str, device: str, sudo: str, user: str, run: Callable[[str], bytes]) -> bool:
    """Return whether sudo on a device refuses to run without a terminal.

    Args:
        folder: for files that remember the answer, such as that of ssh's control sockets.
        device: identifies the device, and the user of the SSH connection.
        sudo: the command.
        user: the user to become.
        run: runs a command on the device without a terminal, and returns its stderr.
    """
    digest = hashlib.sha256("\0".join((device, sudo, user)).encode()).hexdigest()[:16]
    # An empty file for each answer: there is no moment at which it is half written.
    files = {answer: os.path.join(folder, f"sudo-tty-{digest}-{answer}") for answer in ("required", "optional")}
    recent = [answer for answer, path in files.items() if _is_recent(path)]
    if len(recent) != 1:
        refused = _REFUSAL in run(f"LC_ALL=C {sudo} -n -u {shlex.quote(user)} true </dev/null")
        recent = ["required" if refused else "optional"]
        _remember(files[recent[0]], files["optional" if refused else "required"])
    return recent == ["required"]


def _is_recent(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime < REMEMBERED_SECONDS
    except OSError:
        return False


def _remember(path: str, other: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(other)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    os.utime(path)
