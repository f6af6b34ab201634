# SPDX-License-Identifier: GPL-3.0-or-later
"""A tunnel with both of its proxies as processes, as a user would start them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .device import proxy_environment
from .process import Process
from .service import TunnelingService

__all__ = ["OpenTunnel", "ProxyPair", "open_tunnel", "peak_memory", "start_proxy"]


@dataclass(frozen=True)
class OpenTunnel:
    tunnel_id: str
    arn: str
    source_token: str
    destination_token: str


def open_tunnel(
    service: TunnelingService, services: Sequence[str] = ("SSH1", "HTTP1"), thing: str = "thing"
) -> OpenTunnel:
    """Open a tunnel with boto3."""
    opened = service.boto3_client().open_tunnel(destinationConfig={"thingName": thing, "services": list(services)})
    return OpenTunnel(
        opened["tunnelId"], opened["tunnelArn"], opened["sourceAccessToken"], opened["destinationAccessToken"]
    )


def start_proxy(
    service: TunnelingService, token: str, arguments: Sequence[str], log: Path, python: str = sys.executable
) -> Process:
    """Start ``tunnelproxy`` with these arguments and its token in the environment."""
    return Process([python, "-m", "tunnelproxy", *arguments], log, proxy_environment(service, token))


def peak_memory(pid: int) -> int:
    """The peak resident memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


class ProxyPair:
    """Source and destination proxy of one tunnel; ``ports`` are the ports of the source."""

    def __init__(
        self,
        service: TunnelingService,
        folder: Path,
        addresses: Mapping[str, int | str],
        source_options: Sequence[str] = (),
        destination_options: Sequence[str] = (),
    ) -> None:
        self.tunnel = open_tunnel(service, list(addresses))
        self.service = service
        self._stack = ExitStack()
        mapping = ",".join(f"{name}={address}" for name, address in addresses.items())
        self.destination = self._stack.enter_context(
            start_proxy(
                service,
                self.tunnel.destination_token,
                ["-d", mapping, *destination_options],
                folder / "destination.log",
            )
        )
        self.destination.wait_for_output(r"connected to")
        self.source = self._stack.enter_context(
            start_proxy(service, self.tunnel.source_token, ["-m", "src", *source_options], folder / "source.log")
        )
        self.ports = {
            name: int(self.source.wait_for_output(rf"{name}: listening on 127.0.0.1:(\d+)")[1]) for name in addresses
        }

    def __enter__(self) -> ProxyPair:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
