# SPDX-License-Identifier: GPL-3.0-or-later
"""sd_notify against a real socket."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from tunnelproxy.cli.readiness import notify


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"\0{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
        notify("READY=1", "STATUS=well")
        assert manager.recv(4096) == b"READY=1\nSTATUS=well"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_nobody_is_told_where_there_is_no_manager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    with caplog.at_level(logging.DEBUG):
        notify("READY=1")
    assert not caplog.text


def test_a_manager_that_is_gone_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    assert "cannot notify the service manager at NOTIFY_SOCKET: No such file" in caplog.text
