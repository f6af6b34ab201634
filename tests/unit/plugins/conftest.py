# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the built and installed collection importable, as Ansible does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from peers.collection import installed_collection


@pytest.fixture(scope="session", autouse=True)
def importable_collection() -> Iterator[None]:
    """The collection's own path comes before other places that have ``ansible_collections``."""
    path = str(installed_collection().path)
    sys.path.insert(0, path)
    yield
    sys.path.remove(path)
