# SPDX-License-Identifier: GPL-3.0-or-later
"""What the audit log has in it, and what becomes of it when its file goes away."""

from __future__ import annotations

import dataclasses
import json
import logging
import stat
from pathlib import Path

import pytest

from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.events import ControlCall, CutOff, Disconnected
from tunnelproxy.service.logs.audit_log import AuditLog

CALL = ControlCall("r-1", "192.0.2.7", "ci", "AKIA", "OpenTunnel", "pümp\n", "t-1", "ok", 200, 0.0123456789)
END = Disconnected("c-1", "192.0.2.8", "ci", None, "t-1", "source", 3, "1000 Tunnel closed", 10, 20, 61.5)


def audit_log(path: Path) -> AuditLog:
    return AuditLog(path, clock=lambda: 1_700_000_000.1234)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_a_line_of_json(tmp_path: Path) -> None:
    log = audit_log(tmp_path / "audit.log")
    log.write(CALL)
    log.write(END)
    call, end = lines(tmp_path / "audit.log")
    assert call == {
        "time": "2023-11-14T22:13:20.123+00:00",
        "event": "control",
        "request_id": "r-1",
        "address": "192.0.2.7",
        "key": "ci",
        "access_key_id": "AKIA",
        "operation": "OpenTunnel",
        "thing": "pümp\n",
        "tunnel": "t-1",
        "outcome": "ok",
        "status": 200,
        "seconds": 0.012346,
    }
    assert (end["event"], end["outcome"]) == ("disconnected", "1000 Tunnel closed")
    assert (end["bytes_received"], end["bytes_sent"], end["seconds"]) == (10, 20, 61.5)


def test_it_is_for_the_owner_only_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for _ in range(2):
        log = audit_log(path)
        log.write(CALL)
        log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(lines(path)) == 2


def test_strangers_cannot_fill_it(tmp_path: Path) -> None:
    audit_log(tmp_path / "audit.log").write(CutOff("192.0.2.9", "half-open"))
    assert lines(tmp_path / "audit.log") == []


def test_after_its_file_was_renamed_it_goes_on_in_a_new_one(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.log", tmp_path / "audit.log.1"
    log = audit_log(path)
    log.write(CALL)
    path.rename(old)
    log.write(CALL)
    log.reopen()
    log.write(END)
    assert [line["event"] for line in lines(old)] == ["control", "control"]
    assert [line["event"] for line in lines(path)] == ["disconnected"]


def test_where_a_new_file_cannot_be_it_goes_on_in_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    log = audit_log(folder / "audit.log")
    folder.rename(tmp_path / "away")
    log.reopen()
    log.write(CALL)
    assert len(lines(tmp_path / "away" / "audit.log")) == 1


def test_a_full_disk_is_reported_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = audit_log(Path("/dev/full"))
    with caplog.at_level(logging.ERROR):
        log.write(CALL)
        log.write(CALL)
    assert [record.getMessage() for record in caplog.records] == [
        "cannot write to the audit log /dev/full: No space left on device; its lines are lost until it can be written "
        "again"
    ]
    assert log.outage.total == 2


def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="give --audit-log another file"):
        audit_log(tmp_path / "none" / "audit.log")


def test_invalid_utf_8_is_written_as_escapes(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit_log(path).write(dataclasses.replace(CALL, access_key_id="AK\udcff"))
    assert lines(path)[0]["access_key_id"] == "AK\udcff"


def test_a_full_file_is_renamed_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    size = len(path_of_one_line(tmp_path).read_bytes())
    log = AuditLog(path, clock=lambda: 1_700_000_000.1234, size=2 * size, kept=2)
    for _ in range(7):
        log.write(CALL)
    files = sorted(tmp_path.glob("audit.log*"))
    assert [(file.name, len(lines(file))) for file in files] == [
        ("audit.log", 1),
        ("audit.log.1", 2),
        ("audit.log.2", 2),
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def path_of_one_line(folder: Path) -> Path:
    audit_log(folder / "one").write(CALL)
    return folder / "one"


def test_a_full_file_grows_on_where_it_cannot_be_renamed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    log = AuditLog(folder / "audit.log", clock=lambda: 0.0, size=1)
    folder.rename(tmp_path / "away")
    for _ in range(3):
        log.write(CALL)
    assert len(lines(tmp_path / "away" / "audit.log")) == 3
