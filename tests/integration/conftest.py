# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers that several integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.collection import importable
from peers.device import Device, make_ssh_key
from peers.proxies import OpenTunnel, open_tunnel
from peers.service import TunnelingService


@pytest.fixture(scope="session")
def importable_collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with importable(tmp_path_factory.mktemp("collections")) as path:
        yield path


@pytest.fixture(scope="module")
def service() -> Iterator[TunnelingService]:
    with TunnelingService() as running:
        yield running


@pytest.fixture(scope="module")
def device(service: TunnelingService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A device that the test has yet to connect to a tunnel."""
    folder = tmp_path_factory.mktemp("device")
    with Device("thing1", service, folder, make_ssh_key(folder / "user_key")) as running:
        yield running


@pytest.fixture
def tunnel(service: TunnelingService, device: Device) -> Iterator[OpenTunnel]:
    """An open tunnel whose far end is connected."""
    opened = open_tunnel(service, thing=device.thing)
    device.start_proxy(opened.destination_token)
    yield opened
    device.stop_proxy()
