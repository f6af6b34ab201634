# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the sections of a diagnosis read the device: files and a few commands, each with a size or time limit.

Everything here is read-only, and runs on any Python that Ansible supports on a device. What cannot be read raises
L(Unavailable), with a reason that the report shows in place of the section.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

__all__ = ["SEARCH_PATH", "Unavailable", "bounded", "masked", "read_number", "read_text", "run"]

# In non-login shells, PATH often lacks the sbin directories.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
COMMAND_SECONDS = 10
OUTPUT_LIMIT = 1024 * 1024
TEXT_LIMIT = 400

# C0 and C1 control characters and DEL, which could move a terminal's cursor, or be invisible in a page.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]+")
# "password=…", "token: …", "Authorization: Bearer …", and AWS key IDs. Other secrets have no recognisable form.
_SECRETS = (
    re.compile(r"(?i)((?:authorization|proxy-authorization)\s*[:=]\s*(?:\w+\s+)?)\S+"),
    re.compile(
        r"(?i)(\w*(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key)\w*[\"']?\s*[:=]\s*[\"']?)[^\s\"']+"
    ),
    re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
)


class Unavailable(Exception):
    """Something cannot be checked on this device; the message is the reason."""


def read_text(path: str, limit: int = OUTPUT_LIMIT) -> str:
    """Return at most C(limit) bytes of a file as text."""
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except PermissionError:
        raise Unavailable(f"this user may not read {path}; use become") from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from None


def read_number(path: str) -> int | None:
    """Return the integer in a file, or None if there is none."""
    try:
        return int(read_text(path, 64))
    except (Unavailable, ValueError):
        return None


def run(*command: str) -> tuple[str, str]:
    """Run a command in the C locale. Return its stdout and stderr, whatever its exit status."""
    program = shutil.which(command[0], path=SEARCH_PATH)
    if program is None:
        raise Unavailable(f"there is no command {command[0]}")
    environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    try:
        done = subprocess.run(  # noqa: S603 - the commands are those of this package
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} did not finish within {COMMAND_SECONDS} s") from None
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from None
    output, complaints = (stream[:OUTPUT_LIMIT].decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    return output, complaints


def masked(text: str) -> str:
    """Mask text that looks like a secret in a log line. Only common forms are recognised."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1********", text)
    return text


def bounded(value: Any) -> Any:
    """Return a copy in which each string is one line of at most TEXT_LIMIT characters, without control characters."""
    if isinstance(value, dict):
        return {key: bounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [bounded(each) for each in value]
    if isinstance(value, str):
        text = _CONTROLS.sub(" ", value).encode("utf-8", "replace").decode("utf-8").strip()
        return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
    return value
