# SPDX-License-Identifier: Apache-2.0
"""The hub's file of tunnels, with their tokens, for the next hub: one per line, mode 0600."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import json_lines
from .tunnel_record import TunnelRecord

__all__ = ["lines", "load"]

log = logging.getLogger(__name__)


def load(path: Path) -> list[TunnelRecord]:
    """The tunnels of the previous hub, except those that have expired."""
    records = []
    for value in json_lines.read(path):
        try:
            record = TunnelRecord.from_json(value)
            if not record.expires_within(0):
                records.append(record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("cannot read a tunnel that the last hub saved in %s: %s", path, type(error).__name__)
    return records


def lines(records: Iterable[TunnelRecord]) -> Iterator[str]:
    """The file's lines for these tunnels."""
    return (record.saved for record in records)
