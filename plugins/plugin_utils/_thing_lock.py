# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One task at a time per thing, among all forks and runs of this user, so that simultaneous tasks get the same tunnel.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator

from ansible_collections.iotops.tunnel.tunnelproxy.hub import client


@contextlib.contextmanager
def thing_lock(account: str, thing: str) -> Iterator[None]:
    """Hold the lock of a thing in an account. The kernel releases it when the process exits, for whatever reason.

    Raise C(client.HubError) if the hub's folder cannot be written.
    """
    # The name of the account may contain a URL.
    name = f"{hashlib.sha256(account.encode()).hexdigest()[:16]}-{thing}"
    path = os.path.join(client.directory(), "tasks", name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise client.HubError(client.cannot_write(path, error)) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
