# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import resource

import pytest

from tunnelproxy.net.descriptor_limit import allow_many_files, is_reserved


@pytest.mark.parametrize(("limit", "first_reserved"), [(256, 128), (1024, 512), (100_000, 95_904)])
def test_half_of_the_descriptors_are_reserved_and_no_more_than_a_large_fleet_needs(
    limit: int, first_reserved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert not is_reserved(first_reserved - 1)
    assert is_reserved(first_reserved)


def test_the_soft_limit_becomes_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft // 2, hard))
    try:
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
