# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the collection importable under its full name, as Ansible does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.collection import importable


@pytest.fixture(scope="session", autouse=True)
def importable_collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with importable(tmp_path_factory.mktemp("collections")) as path:
        yield path
