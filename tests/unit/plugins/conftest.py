# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes this tree importable as a collection, as Ansible does with an installed one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from peers.process import REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def importable_collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tree comes before other places that have ``ansible_collections``."""
    folder = tmp_path_factory.mktemp("collections")
    namespace = folder / "ansible_collections" / "iotops"
    namespace.mkdir(parents=True)
    (namespace / "tunnel").symlink_to(REPOSITORY)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
