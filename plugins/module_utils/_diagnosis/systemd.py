# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd: failed units, the state of required units, and errors in the journal.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import glob
import json
import os
import time

from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.reading import (
    Unavailable,
    masked,
    read_text,
    run,
)

__all__ = ["journal", "services"]

PROPERTIES = "Id,Description,LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts"
FILES = ("/var/log/journal/*/*.journal", "/run/log/journal/*/*.journal")
MOST = 50
# Records of the journal, the newest first, so that a large journal takes no longer.
RECORDS = 500
PRIORITIES = ("emergency", "alert", "critical", "error")


def services(wanted: list) -> dict:
    """Return units that failed or keep being restarted, and the state of those that must be active.

    Args:
        wanted: names of units that must be active.
    """
    _require_systemd()
    lines, _complaints = run(
        "systemctl", "list-units", "--state=failed,auto-restart", "--plain", "--no-legend", "--no-pager", "--full"
    )
    failed = [line.split()[0] for line in lines.splitlines() if line.strip()]
    state, _complaints = run("systemctl", "show", "--property=SystemState", "--no-pager")
    return {
        "state": state.strip().partition("=")[2],
        "failed_count": len(failed),
        "failed": _describe(failed[:MOST]),
        "wanted": _describe(wanted),
    }


def journal(hours: int, lines: int) -> dict:
    """Return the newest errors in the journal, without duplicates, and with apparent secrets masked.

    Args:
        hours: how far to look back.
        lines: how many distinct messages to return. With 0, the journal is not read.
    """
    if not lines:
        raise Unavailable("the journal was not requested (log_lines is 0)")
    files = [path for pattern in FILES for path in glob.glob(pattern)]
    readable = [path for path in files if os.access(path, os.R_OK)]
    if not readable:
        raise Unavailable("this user may not read the journal; use become" if files else "there is no journal")
    output, _complaints = run(
        "journalctl",
        "--priority=err",
        f"--since=@{int(time.time()) - hours * 3600}",
        f"--lines={RECORDS}",
        "--reverse",
        "--no-pager",
        "--output=json",
    )
    messages: dict = {}
    count = 0
    for line in output.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # truncated at OUTPUT_LIMIT
        count += 1
        source, text = record.get("SYSLOG_IDENTIFIER") or record.get("_COMM") or "", _text(record.get("MESSAGE"))
        known = messages.setdefault((source, text), _entry(record, source, text))
        known["count"] += 1
    facts = {
        "hours": hours,
        "errors": count,
        "errors_are_more": count >= RECORDS,
        "messages": list(messages.values())[:lines],
    }
    if len(readable) < len(files):
        facts["skipped"] = ["messages of other users and of the system; use become"]
    return facts


def _require_systemd() -> None:
    if os.path.isdir("/run/systemd/system"):
        return
    try:
        init = read_text("/proc/1/comm", 64).strip()
    except Unavailable:
        init = "another program"
    raise Unavailable(f"systemd is not running; process 1 is {init}")


def _describe(units: list) -> list:
    """Return the state of units. systemctl prints them in the order of its arguments, separated by empty lines."""
    if not units:
        return []
    output, _complaints = run("systemctl", "show", f"--property={PROPERTIES}", "--no-pager", "--", *units)
    described = []
    for name, block in zip(units, output.split("\n\n")):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        described.append(
            {
                "unit": values.get("Id") or name,
                "description": values.get("Description", ""),
                "load": values.get("LoadState", ""),
                "active": values.get("ActiveState", ""),
                "sub": values.get("SubState", ""),
                "result": values.get("Result", ""),
                "exit_status": _number(values.get("ExecMainStatus")),
                "restarts": _number(values.get("NRestarts")),
            }
        )
    return described


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _text(message: object) -> str:
    """Return a message as text: journalctl prints binary ones as a list of bytes, and very long ones as null."""
    if isinstance(message, list):
        return bytes(each for each in message if isinstance(each, int)).decode("utf-8", "replace")
    return message if isinstance(message, str) else "(too long to show)"


def _entry(record: dict, source: str, text: str) -> dict:
    moment = int(record.get("__REALTIME_TIMESTAMP", 0)) // 1_000_000
    priority = str(record.get("PRIORITY", "3"))
    return {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment)),
        "level": PRIORITIES[int(priority)] if priority in "0123" else "error",
        "source": source,
        "message": masked(text),
        "count": 0,
    }
