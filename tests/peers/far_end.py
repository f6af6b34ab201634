# SPDX-License-Identifier: GPL-3.0-or-later
"""Destinations of every kind and version, each started in the same way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from tunnelproxy.protocol.session import Version

from .process import Process
from .proxies import OpenTunnel, start_proxy
from .reference import ReferenceDestination
from .service import TunnelingService

__all__ = ["FAR_ENDS", "REFERENCES", "FarEnd", "RunningFarEnd", "RunningProcess", "rotated"]


@dataclass(frozen=True)
class FarEnd:
    """A kind of destination: ours, one with the reference's rules, or the reference itself, a program at a path."""

    make: str
    version: Version

    def __str__(self) -> str:
        return f"{Path(self.make).name}-{self.version}"

    def start(
        self, service: TunnelingService, token: str, ports: Mapping[str, int], folder: Path
    ) -> AbstractContextManager[RunningFarEnd]:
        """Start one in front of servers on the loopback."""
        log = folder / f"{self}-{len(list(folder.iterdir()))}.log"
        if self.make == "rules":
            return ReferenceDestination(service, token, ports, self.version)
        mapping = ",".join(f"{name}=127.0.0.1:{port}" for name, port in ports.items())
        if self.make == "ours":
            options = ["-d", mapping, "--protocol-version", str(self.version)]
            return RunningProcess(start_proxy(service, token, options, log))
        if self.version is Version.V1:
            mapping = mapping.partition("=")[2]
        command = [self.make, "-e", f"localhost:{service.data.rpartition(':')[2]}", "-d", mapping, "-c", service.ca]
        return RunningProcess(Process([*command, "-v", "5"], log, {**os.environ, "AWSIOT_TUNNEL_ACCESS_TOKEN": token}))


class RunningProcess:
    """A destination that is a process."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __enter__(self) -> RunningProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    @property
    def exited(self) -> str | None:
        """Its output, if it has exited."""
        return None if self.process.popen.poll() is None else self.process.output()[-2000:]

    def stop(self) -> None:
        """Kill it."""
        self.process.popen.kill()
        self.process.wait()


RunningFarEnd = Union[RunningProcess, ReferenceDestination]


def rotated(service: TunnelingService, tunnel: OpenTunnel) -> str:
    """A new access token for the destination of a tunnel."""
    client = service.boto3_client()
    token: str = client.rotate_tunnel_access_token(tunnelId=tunnel.tunnel_id, clientMode="DESTINATION")[
        "destinationAccessToken"
    ]
    return token


def _reference_itself() -> list[FarEnd]:
    """The kinds in REFERENCE_LOCALPROXY, such as ``V3:/path/to/localproxy,V1:/path/to/another``."""
    given = filter(None, os.environ.get("REFERENCE_LOCALPROXY", "").split(","))
    return [FarEnd(path, Version[version]) for version, _, path in (each.partition(":") for each in given)]


REFERENCES = _reference_itself()
FAR_ENDS = [*(FarEnd(make, version) for make in ("ours", "rules") for version in Version), *REFERENCES]
