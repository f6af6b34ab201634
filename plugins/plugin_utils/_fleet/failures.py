# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reasons of failures, in one line each, and grouped.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_REASON = 400
"""Characters. The whole result is printed with C(-v)."""

_TUNNEL_ID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
# What ssh itself prints if it has a terminal on the device, after all output of the device.
_SSH_GOODBYE = re.compile(r"^(Shared c|C)onnection to \S+ closed\.\r?$")
_PREFIX = "Task failed: "
"""What ansible-core 2.19 and later put before the message of a connection plugin."""
_NO_RESULT = ("MODULE FAILURE", "Module result deserialization failed")
"""How the message begins if what a module printed is not a result: in ansible-core 2.18, and in later ones."""


@dataclass(frozen=True)
class Failure:
    """A host that failed or could not be reached, and why.

    Attributes:
        thing: the name of the thing, which may differ from that of the host.
        task: the name of the task that failed.
        reason: one line.
    """

    host: str
    thing: str
    task: str
    reason: str


@dataclass(frozen=True)
class Group:
    """Hosts with the same failure, apart from their own names in it."""

    reason: str
    hosts: tuple[str, ...]


def one_line(value: Any) -> str:
    """Return a text as one line without control characters, because it may come from a device."""
    words = "".join(char if _harmless(char) else " " for char in str(value)).split()
    text = " ".join(words)
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def reason_of(result: Mapping[str, Any]) -> str:
    """The reason why a task failed, from its result. The reason of a censored result is not shown."""
    if "censored" in result or result.get("_ansible_no_log") is True:
        return "the reason is hidden by no_log"
    message = one_line(result.get("msg") or "").removeprefix(_PREFIX)
    if isinstance(result.get("rc"), int) and message in ("", "non-zero return code"):
        said = _last_line(result.get("stderr")) or _last_line(result.get("stdout"))
        return one_line(f"exit status {result['rc']}" + (f": {said}" if said else ""))
    if message.startswith(_NO_RESULT) and "rc" in result:
        said = _last_line(result.get("module_stderr")) or _last_line(result.get("module_stdout"))
        return one_line(
            f"the module ended without a result, with exit status {result['rc']}"
            + (f" ({said})" if said else "")
            + "; if the device's Python does not work, set ansible_python_interpreter to another one"
        )
    if "assertion" in result:
        return one_line(f"{message or 'assertion failed'} ({one_line(result['assertion'])})")
    return message or "it gave no reason"


def grouped(failures: Iterable[Failure]) -> list[Group]:
    """Group failures whose reasons differ only in the host's name or the tunnel's ID; the largest group first."""
    by_shape: dict[str, list[Failure]] = {}
    for failure in failures:
        by_shape.setdefault(f"{failure.task}\n{_shape(failure)}", []).append(failure)
    groups = [
        Group(
            f"{_shape(some[0]) if len(some) > 1 else some[0].reason} (at: {some[0].task})",
            tuple(failure.host for failure in some),
        )
        for some in by_shape.values()
    ]
    return sorted(groups, key=lambda group: (-len(group.hosts), group.reason))


def _shape(failure: Failure) -> str:
    text = _TUNNEL_ID.sub("…", failure.reason)
    for name in (failure.thing, failure.host):
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "HOST", text)
    return text


def _last_line(text: Any) -> str:
    lines = [line for line in str(text or "").splitlines() if line.strip() and not _SSH_GOODBYE.match(line)]
    return one_line(lines[-1]) if lines else ""


def _harmless(char: str) -> bool:
    # Cc: control characters, such as the one that begins an escape sequence. Cf: format characters, some of which
    # change the writing direction. Cs: surrogates, which cannot be printed. Zl and Zp: line and paragraph separators.
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
