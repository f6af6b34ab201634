# SPDX-License-Identifier: Apache-2.0
"""What outlives a hub: its tunnels with their tokens, one a line, in a file of mode 0600 in the hub's folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import json_lines
from .tunnel_record import TunnelRecord

__all__ = ["lines", "load"]

log = logging.getLogger(__name__)


def load(path: Path) -> list[TunnelRecord]:
    """The tunnels of the hub before this one, less those whose life is over."""
    records = []
    for value in json_lines.read(path):
        try:
            record = TunnelRecord.from_json(value)
            if not record.expires_within(0):
                records.append(record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("a tunnel that the last hub left in %s cannot be read: %s", path, type(error).__name__)
    return records


def lines(records: Iterable[TunnelRecord]) -> Iterator[str]:
    """What the file is to hold for these tunnels."""
    return (record.saved for record in records)
