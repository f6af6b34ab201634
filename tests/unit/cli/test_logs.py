# SPDX-License-Identifier: GPL-3.0-or-later
"""Levels and formats of logs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from datetime import datetime, timezone
from typing import Any

import pytest

from tunnelproxy.cli import logs
from tunnelproxy.log_context import set_about
from tunnelproxy.protocol.session import Connection

log = logging.getLogger("tunnelproxy.test")


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    root.setLevel(level)


def logged(verbosity: int, log_format: str = "text") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(verbosity, log_format, logging.StreamHandler(stream))
    return stream


def entry(*arguments: Any, **settings: Any) -> dict[str, Any]:
    stream = logged(4, "json")
    log.info(*arguments, **settings)
    (line,) = stream.getvalue().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (0, []),
        (1, ["fatal"]),
        (2, ["fatal", "error"]),
        (3, ["fatal", "error", "warning"]),
        (4, ["fatal", "error", "warning", "info"]),
        (5, ["fatal", "error", "warning", "info", "debug"]),
        (6, ["fatal", "error", "warning", "info", "debug", "trace"]),
        (255, ["fatal", "error", "warning", "info", "debug", "trace"]),
    ],
)
@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_levels(verbosity: int, expected: list[str], log_format: str) -> None:
    stream = logged(verbosity, log_format)
    levels = {"fatal": 50, "error": 40, "warning": 30, "info": 20, "debug": 10, "trace": 5}
    for word, level in levels.items():
        log.log(level, "%s", word)
    lines = stream.getvalue().splitlines()
    seen = [json.loads(line)["message"] if log_format == "json" else line.split()[-1] for line in lines]
    assert seen == expected


def test_a_record_is_one_object_on_one_line() -> None:
    found = entry("two\nlines, ä %s", "x")
    assert found["message"] == "two\nlines, ä x"
    assert (found["level"], found["logger"]) == ("info", "tunnelproxy.test")
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(found["time"])).total_seconds()) < 60
    assert set(found) == {"time", "level", "logger", "message"}


def test_a_record_about_a_connection_has_its_parts() -> None:
    found = entry("%s: opened", Connection("SSH1", 3, 7))
    assert (found["service"], found["stream"], found["connection"]) == ("SSH1", 3, 7)


def test_a_record_about_a_service_or_a_tunnel_names_it() -> None:
    found = entry("listening", extra={"service": "SSH1", "tunnel": "t", "thing": "th", "channel": "c", "other": "o"})
    assert {name: found[name] for name in ("service", "tunnel", "thing", "channel")} == {
        "service": "SSH1",
        "tunnel": "t",
        "thing": "th",
        "channel": "c",
    }
    assert "other" not in found


def test_a_task_says_what_its_records_are_about() -> None:
    def in_a_task() -> dict[str, Any]:
        set_about(thing="sensor-7")
        set_about(tunnel="t1")
        return entry("hello")

    found = copy_context().run(in_a_task)
    assert (found["thing"], found["tunnel"]) == ("sensor-7", "t1")
    assert "thing" not in entry("hello")


def test_a_traceback_is_a_field() -> None:
    try:
        int("broken")
    except ValueError:
        found = entry("trouble", exc_info=True)
    assert found["exception"].startswith("Traceback")
    assert "'broken'" in found["exception"]


def test_a_last_complaint_in_both_formats(capsys: pytest.CaptureFixture[str]) -> None:
    logs.complain(ValueError("why"))
    logs.complain(ValueError("why"), "json")
    text, structured = capsys.readouterr().err.splitlines()
    assert text == "tunnelproxy: error: why"
    assert json.loads(structured)["level"] == "fatal"
    assert json.loads(structured)["message"] == "why"
