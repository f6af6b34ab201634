# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh's own log (C(-E)).

It contains no output of the device: its banner, and what its commands print, go to stderr. Every line is therefore
ssh's, in the format of OpenSSH's source (ssh.c, sshconnect.c, sshconnect2.c, clientloop.c, mux.c, packet.c), up to
10.5.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import re

__all__ = ["SshLog", "last_words"]

_MOST_LINES = 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

# ssh quotes the device in these, including line breaks, so what follows may come from the device.
_QUOTES_DEVICE = re.compile(r"Received disconnect from |channel \d+: open failed: ")

# Remarks, after which ssh continues.
_REMARK = re.compile(
    r"debug[123]: |OpenSSH_|Warning: |WARNING: |\*\* |Authenticated |Transferred: |Bytes per second: |"
    r"Failed to add the |Host key fingerprint is: |ControlSocket .+ already exists|Control socket connect\(|"
    r"mux_client_|Master refused session request: |muxclient: |Pseudo-terminal will not be allocated|Allocated port |"
    r"X11 forwarding request failed|Could not request |bind |channel_setup_fwd_listener|DISPLAY |usage: | {3}"
)

_LOST_MASTER = "mux_client_hello_exchange: write packet: Broken pipe"
_AUTHENTICATED = re.compile(r"(?:debug1: )?Authenticated to ")

# How a connection ends on which a command may have run.
_ENDS_SESSION = re.compile(
    r"Timeout, server .+ not responding\.$|client_loop: send disconnect: |Read from remote host |"
    r"channel \d+: open failed: "
)

# How a connection ends, either before or after a login.
_ENDS_ANY = re.compile(
    r"Connection (?:closed|reset) by |Disconnected from |Received disconnect from |ssh_dispatch_run_fatal: |"
    r"ssh_packet_|packet_write_|.*: Broken pipe$"
)
_BEFORE_LOGIN = re.compile(
    r"(?:kex|ssh)_exchange_identification: |banner exchange: |.*: Too many authentication failures$|"
    r".+: Permission denied \("
)


class SshLog:
    """The log of one run of ssh.

    Args:
        text: the content of the file; C(None) if ssh did not open it, or was given another one.

    Attributes:
        lines: without remarks.
    """

    def __init__(self, text: str | None) -> None:
        every = [_clean(line) for line in (text or "").split("\n")]
        for number, line in enumerate(every):
            if _QUOTES_DEVICE.match(line):
                every = every[: number + 1]
                break
        self.authenticated = any(_AUTHENTICATED.match(line) for line in every)
        self.lost_master = any(line.startswith(_LOST_MASTER) for line in every)
        self.lines = [line for line in every if line and not _REMARK.match(line)]

    def find(self, pattern: str) -> re.Match[str] | None:
        """Return the match of the first line that a pattern matches completely, or None."""
        return next((found for line in self.lines if (found := re.fullmatch(pattern, line))), None)

    def has(self, pattern: str) -> bool:
        """Whether a pattern matches a line completely."""
        return self.find(pattern) is not None

    @property
    def ends_session(self) -> bool:
        """Whether the log shows that ssh had logged in, or at least does not contradict it."""
        return self.authenticated or not self.lines or bool(_ENDS_SESSION.match(self.lines[-1]))

    @property
    def ends_anywhere(self) -> bool:
        """Whether the last line reports a closed connection, and the log does not show whether ssh had logged in."""
        if self.ends_session or any(_BEFORE_LOGIN.match(line) for line in self.lines):
            return False
        return bool(_ENDS_ANY.match(self.lines[-1]))

    @property
    def words(self) -> str:
        """The last lines."""
        return "; ".join(self.lines[-_MOST_LINES:])


def last_words(stderr: str) -> str:
    """Return the last lines of a program that failed before it connected, without its usage text."""
    usage = stderr.find("usage: ")
    lines = [_clean(line) for line in (stderr if usage < 0 else stderr[:usage]).split("\n")]
    return "; ".join([line for line in lines if line and not _REMARK.match(line)][-_MOST_LINES:])


def _clean(line: str) -> str:
    return _CONTROL.sub(" ", line).rstrip()
