# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers that several integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from peers.service import TunnelingService


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService() as running:
        yield running
