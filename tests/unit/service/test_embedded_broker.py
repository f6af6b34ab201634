# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a broker from being run, and a real Mosquitto where the path is an odd one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop
from tunnelproxy.service import embedded_broker as module
from tunnelproxy.service.certificates import Certificates, OwnCertificate
from tunnelproxy.service.embedded_broker import EmbeddedBroker
from tunnelproxy.service.errors import ServiceError


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path / "keys", tmp_path / "ca")
    made.ensure("127.0.0.1")
    return made


def test_a_path_that_is_too_long_is_named_with_the_remedy(tmp_path: Path, certificates: Certificates) -> None:
    with pytest.raises(ServiceError, match="is too long for a socket; give --state-dir a shorter path"):
        EmbeddedBroker(tmp_path / ("x" * 108), "127.0.0.1", 0, certificates)


def test_a_port_that_is_taken_is_named(
    tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PORT_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"cannot listen on port {port} of 127.0.0.1 for MQTT"):
            EmbeddedBroker(tmp_path / "mqtt", "127.0.0.1", port, certificates)


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, certificates: Certificates) -> None:
    missing = OwnCertificate(tmp_path / "none.pem", certificates.server_key)
    with pytest.raises(ServiceError, match=r"cannot copy .*none\.pem for the MQTT broker: No such file"):
        EmbeddedBroker(tmp_path / "mqtt", "127.0.0.1", 0, missing)


@in_event_loop
async def test_it_listens_where_the_path_has_spaces(tmp_path: Path, certificates: Certificates) -> None:
    broker = EmbeddedBroker(tmp_path / "an odd one", "127.0.0.1", 0, certificates)
    running = asyncio.ensure_future(broker.run())
    try:
        await broker.wait_until_it_listens()
        trusting = ssl.create_default_context(cafile=str(certificates.authority))
        _, writer = await asyncio.open_connection("127.0.0.1", broker.port, ssl=trusting)
        writer.close()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
