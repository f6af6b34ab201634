# SPDX-License-Identifier: GPL-3.0-or-later
"""Being another user of this machine, for a command; only root can."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

__all__ = ["as_user"]

# In a mount namespace of the command's own, so that nothing changes for anybody else.
_OPEN = """\
set -e
closed=$1 python=$2 user=$3
shift 3
spare=$(mktemp -d)
mount --bind "$python" "$spare"
mount -t tmpfs -o mode=755 tmpfs "$closed"
mkdir -p "$python"
mount --move "$spare" "$python"
rmdir "$spare"
exec setpriv --reuid="$user" --regid="$user" --init-groups "$@"
"""


def as_user(user: str) -> list[str]:
    """The start of a command line by which the rest runs as another user, with the Python of the tests.

    That Python may be in a directory that only root can enter.
    """
    python = Path(sys.base_prefix)
    for parent in reversed(python.parents):
        if not os.stat(parent).st_mode & stat.S_IXOTH:
            return ["unshare", "--mount", "sh", "-c", _OPEN, "sh", str(parent), str(python), user]
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
