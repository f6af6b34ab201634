# SPDX-License-Identifier: GPL-3.0-or-later
"""Several tunneling services behind one HAProxy, as in docs/service.md, with the configuration in deploy/."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from .process import REPOSITORY, Process, free_port
from .service import TunnelingService
from .web_proxy import require, wait_for_port

__all__ = ["EXAMPLE", "NAMES", "Front"]

EXAMPLE = REPOSITORY / "deploy" / "haproxy.cfg"

NAMES = ("127.1", "127.0.1")
"""Names of this machine that need neither a name server nor /etc/hosts: for the resolver they are old spellings of
127.0.0.1, for TLS they are names, not addresses."""


class Front:
    """A front and the services behind it, one for each name. Use it as a context manager.

    Args:
        folder: the folder for the front's files.
        names: at most as many as in the example.
        options: further options of all services.
    """

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES, *options: str) -> None:
        self.api_port, self.data_port = free_port(), free_port()
        self._folder = folder
        self._names = names
        self._options = options
        self._stack = ExitStack()
        self.services: list[TunnelingService] = []
        self.process: Process

    def __enter__(self) -> Front:
        with ExitStack() as stack:
            for number, name in enumerate(self._names, 1):
                options = (
                    *("--host", f"127.0.0.1{number}", "--public-name", name, "--connections-per-address", "0"),
                    *("--api-port", str(self.api_port), "--data-port", str(self.data_port)),
                )
                self.services.append(stack.enter_context(TunnelingService(*options, *self._options)))
            configuration = self._folder / "haproxy.cfg"
            configuration.write_text(self._configuration())
            # Without -W it is one process; with -db it stays in the foreground.
            self.process = stack.enter_context(
                Process([require("haproxy", "haproxy"), "-db", "-f", configuration], self._folder / "haproxy.log")
            )
            wait_for_port(self.data_port)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _configuration(self) -> str:
        """The example with the addresses of this test, and without MQTT, which these services do not offer."""
        true_here = {
            "192.0.2.10:8443": f"127.0.0.1:{self.api_port}",
            "192.0.2.10:9443": f"127.0.0.1:{self.data_port}",
            "maxconn 40000": "maxconn 1500",
        }
        for example, name in zip(("one.tunnels.example.com", "two.tunnels.example.com"), self._names):
            true_here[example] = name
        text = re.sub(r"(?m)^ *bind .* # MQTT\n", "", EXAMPLE.read_text())
        for example, here in true_here.items():
            assert text.count(example) == 1, f"{EXAMPLE} has no {example}"
            text = text.replace(example, here)
        return text
