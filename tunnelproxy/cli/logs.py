# SPDX-License-Identifier: Apache-2.0
"""Logs on stderr, with the reference's levels: as text, or one JSON object per line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from ..log_context import about
from ..protocol.session import Connection

__all__ = ["DEFAULT_VERBOSITY", "FORMATS", "FORMAT_HELP", "add_options", "complain", "configure"]

DEFAULT_VERBOSITY = 4

FORMATS = ("text", "json")
FORMAT_HELP = "log format: text (default), or json, with one JSON object per line"

_LEVELS = (
    logging.CRITICAL + 1,
    logging.CRITICAL,
    logging.ERROR,
    logging.WARNING,
    logging.INFO,
    logging.DEBUG,
    logging.NOTSET + 1,
)

_SUBJECTS = ("thing", "tunnel", "service", "stream", "connection", "channel")
"""The fields of a record's ``extra`` that structured logs show."""


def configure(verbosity: int, log_format: str = "text", handler: logging.Handler | None = None) -> None:
    """Log to stderr, or to another handler.

    Args:
        verbosity: 0 off, 1 fatal, 2 error, 3 warning, 4 info, 5 debug, 6 trace, as in the reference local proxy.
        log_format: one of :data:`FORMATS`.
    """
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if log_format == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    )
    logging.basicConfig(handlers=[handler], level=_LEVELS[min(verbosity, len(_LEVELS) - 1)], force=True)


def complain(message: object, log_format: str = "text") -> None:
    """Print on stderr why the process exits with status 1, whatever the log level."""
    if log_format == "json":
        record = logging.LogRecord("tunnelproxy", logging.CRITICAL, "", 0, str(message), None, None)
        print(_Json().format(record), file=sys.stderr, flush=True)
    else:
        print(f"tunnelproxy: error: {message}", file=sys.stderr, flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``-v`` and ``--log-format`` to a command that logs."""
    parser.add_argument(
        "-v",
        "--verbose",
        type=int,
        choices=range(len(_LEVELS)),
        default=DEFAULT_VERBOSITY,
        metavar="0..6",
        help="log level, from nothing to everything (default: %(default)s)",
    )
    parser.add_argument("--log-format", choices=FORMATS, default="text", help=FORMAT_HELP)


class _Json(logging.Formatter):
    """Time (UTC), level, logger and message; the context; and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": "fatal" if record.levelno >= logging.CRITICAL else record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **about(),
            **_subject(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _subject(record: logging.LogRecord) -> dict[str, Any]:
    found = {name: getattr(record, name) for name in _SUBJECTS if hasattr(record, name)}
    for argument in record.args if isinstance(record.args, tuple) else ():
        if isinstance(argument, Connection):
            found["service"] = argument.service_id
            found["stream"], found["connection"] = argument.stream_id, argument.connection_id
    return found
