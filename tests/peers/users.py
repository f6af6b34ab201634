# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs commands as another user of this machine; needs root."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

__all__ = ["as_user"]

# In the command's own mount namespace: nothing changes for other processes.
_OPEN = """\
set -e
closed=$1 python=$2
shift 2
spare=$(mktemp -d)
mount --bind "$python" "$spare"
mount -t tmpfs -o mode=755 tmpfs "$closed"
mkdir -p "$python"
mount --move "$spare" "$python"
rmdir "$spare"
exec "$@"
"""


def as_user(user: str, groups: str = "--init-groups") -> list[str]:
    """The start of a command line that runs the rest as another user, with the Python of the tests.

    That Python may be in a directory that only root can access.

    Args:
        user: a name, or a number.
        groups: setpriv(1)'s option for supplementary groups; a user without an account can only clear them.
    """
    rights = ["setpriv", f"--reuid={user}", f"--regid={user}", groups]
    python = Path(sys.base_prefix)
    for parent in reversed(python.parents):
        if not os.stat(parent).st_mode & stat.S_IXOTH:
            return ["unshare", "--mount", "sh", "-c", _OPEN, "sh", str(parent), str(python), *rights]
    return rights
