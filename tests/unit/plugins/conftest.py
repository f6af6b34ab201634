# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the collection importable under its full name, as Ansible does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from peers.process import REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def importable_collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A path with this repository as ``ansible_collections/iotops/tunnel``, before other paths with collections."""
    path = tmp_path_factory.mktemp("collections")
    namespace = path / "ansible_collections" / "iotops"
    namespace.mkdir(parents=True)
    (namespace / "tunnel").symlink_to(REPOSITORY)
    sys.path.insert(0, str(path))
    yield
    sys.path.remove(str(path))
