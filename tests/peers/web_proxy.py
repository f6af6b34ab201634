# SPDX-License-Identifier: GPL-3.0-or-later
"""Web proxies from Debian: tinyproxy, and stunnel in front of it for TLS."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from pathlib import Path

from .process import Process, free_port, wait_for

__all__ = ["Tinyproxy", "TlsFront", "require", "wait_for_port"]


def require(program: str, package: str) -> str:
    """The path of a program; without it, fail and say how to install it."""
    # Not every user's PATH contains the folders of daemons.
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise RuntimeError(f"{program} is not installed: sudo apt-get install {package}")
    return path


def wait_for_port(port: int) -> None:
    """Wait until a server listens on the port."""

    def connects() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    wait_for(connects, f"something listens on port {port}")


class Tinyproxy:
    """An HTTP proxy on the loopback.

    Args:
        credentials: ``user password``; None if it requires no authentication.
        connect_port: the only port that it connects to; None for all ports.
        listen: the address to listen on: the loopback, or all addresses (0.0.0.0).
    """

    def __init__(
        self, folder: Path, credentials: str = "", connect_port: int | None = None, listen: str = "127.0.0.1"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        config = folder / "tinyproxy.conf"
        config.write_text(
            f"Port {self.port}\nListen {listen}\nTimeout 600\nMaxClients 50\nLogLevel Info\n"
            + (f"BasicAuth {credentials}\n" if credentials else "")
            + (f"ConnectPort {connect_port}\n" if connect_port else "")
        )
        self.process = Process([require("tinyproxy", "tinyproxy-bin"), "-d", "-c", config], folder / "tinyproxy.log")
        wait_for_port(self.port)

    def __enter__(self) -> Tinyproxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.stop()

    def connections_to(self, address: str) -> int:
        """How many connections to ``HOST:PORT`` have been requested."""
        return self.process.output().count(f"CONNECT {address} HTTP/1.1")


class TlsFront:
    """TLS on a separate port in front of another port of the loopback."""

    def __init__(self, folder: Path, port: int, certificate: Path, key: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        config = folder / "stunnel.conf"
        config.write_text(
            f"foreground = yes\npid =\n[front]\naccept = 127.0.0.1:{self.port}\nconnect = 127.0.0.1:{port}\n"
            f"cert = {certificate}\nkey = {key}\n"
        )
        self.process = Process([require("stunnel", "stunnel4"), config], folder / "stunnel.log")
        wait_for_port(self.port)

    def __enter__(self) -> TlsFront:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()
