# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether modules can be sent to a device on the standard input of sudo, which has no terminal then.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Callable

from ansible_collections.iotops.tunnel.tunnelproxy.files import replace_file

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
    path = os.path.join(folder, f"sudo-tty-{digest}")
    remembered = _read_recent(path)
    if remembered is None:
        command = f"LC_ALL=C {sudo} -n -u {shlex.quote(user)} true </dev/null"
        remembered = b"required" if _REFUSAL in run(command) else b"not required"
        os.makedirs(folder, mode=0o700, exist_ok=True)
        replace_file(path, remembered)
    return remembered == b"required"


def _read_recent(path: str) -> bytes | None:
    try:
        if time.time() - os.stat(path).st_mtime > REMEMBERED_SECONDS:
            return None
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
