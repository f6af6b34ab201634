# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that take their time, against a data plane in this process whose deadlines are short."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from pathlib import Path

import pytest

from tunnelproxy.service.data_plane import client_connection
from tunnelproxy.service.data_plane.server import DataPlane
from tunnelproxy.service.state.certificates import Certificates, server_context
from tunnelproxy.service.state.store import Store


async def first_words(folder: Path, sent: bytes) -> bytes:
    """What a data plane answers to ``sent``, until it hangs up."""
    certificates = Certificates(folder / "keys", folder / "ca")
    certificates.ensure("127.0.0.1")
    store = Store(folder / "service.db")
    data_plane = DataPlane(store, clock=time.time)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await data_plane.start(listener, server_context(certificates))
        context = ssl.create_default_context(capath=str(folder / "ca"))
        reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=context)
        writer.write(sent)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
            await data_plane.stop()
            store.close()


@pytest.mark.parametrize("sent", [b"", b"GET /tunnel HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_does_not_finish_its_request_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(client_connection, "HANDSHAKE_DEADLINE", 0.2)
    assert asyncio.run(first_words(tmp_path, sent)) == b""


def test_a_request_that_does_not_end_is_refused_at_4_kib(tmp_path: Path) -> None:
    answer = asyncio.run(first_words(tmp_path, b"GET /tunnel HTTP/1.1\r\nx: " + b"y" * 4096))
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"x-iotops-cause: bad-request" in answer


def test_what_is_no_http_is_hung_up_on(tmp_path: Path) -> None:
    assert asyncio.run(first_words(tmp_path, b"\x00\x01\r\n\r\n")) == b""
