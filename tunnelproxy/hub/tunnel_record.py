# SPDX-License-Identifier: Apache-2.0
"""What the hub knows about a tunnel, and saves in a file for the next hub."""

from __future__ import annotations

import functools
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..net.endpoint import Endpoint
from ..net.route import Route, find_route
from .account import UNKNOWN_ACCOUNT, Account, TunnelKey

__all__ = ["DataPlaneSettings", "TunnelRecord"]

_PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY")


@dataclass(frozen=True)
class DataPlaneSettings:
    """How to reach a data plane, according to a caller's environment.

    Attributes:
        endpoint: ``HOST:PORT``; None for AWS's endpoint in the tunnel's region.
        capath: the certificate authorities to trust there, if not the system's.
        web_proxy: the environment variables that name an HTTP proxy and its exceptions.
    """

    endpoint: str | None = None
    capath: str | None = None
    web_proxy: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], directory: str) -> DataPlaneSettings:
        """The settings of a process.

        Args:
            directory: its working directory.
        """
        capath = environment.get("AWSIOT_TUNNEL_CAPATH")
        return cls(
            environment.get("AWSIOT_TUNNEL_ENDPOINT") or None,
            os.path.join(directory, capath) if capath else None,
            {name: environment[name] for name in _PROXY_VARIABLES if environment.get(name)},
        )

    def route(self, region: str) -> Route:
        """The route to the data plane of a region.

        Raises:
            ConfigurationError: a setting is not valid.
        """
        endpoint = Endpoint.parse(self.endpoint) if self.endpoint else Endpoint.of_region(region)
        return find_route(endpoint, self.web_proxy, capath=self.capath)


@dataclass(frozen=True)
class TunnelRecord:
    """A tunnel, as saved in the hub's file.

    Attributes:
        owner: the owner who opened it, or took it over, through this hub.
        client_token: sent with every connect, so that the source token remains valid for reconnecting.
        ports: where services listened on the loopback, to listen there again.
        chosen_ports: where the user wants them to listen: 0 for any port, None for none.
        any_host: the services whose port accepts requests for any host, and therefore from any web page.
        awaited_since: while the hub waits for the device to connect: when the hub opened the tunnel or took it over, in
            seconds since the epoch.
        destination_version: the protocol version that its device was found to speak: ``V1`` if the hub must speak V1
            from the start, ``V3`` for V2 or V3.
        expects_v1: whether an earlier tunnel's device was found to speak V1 only.
    """

    thing: str
    tunnel_id: str
    region: str
    source_token: str = field(repr=False)
    account: Account = UNKNOWN_ACCOUNT
    owner: str = ""
    services: tuple[str, ...] = ()
    data_plane: DataPlaneSettings = field(default_factory=DataPlaneSettings)
    expires_at: float | None = None
    client_token: str = field(default_factory=lambda: str(uuid.uuid4()), repr=False)
    ports: Mapping[str, int] = field(default_factory=dict)
    chosen_ports: Mapping[str, int | None] = field(default_factory=dict)
    any_host: tuple[str, ...] = ()
    awaited_since: float | None = None
    destination_version: str | None = None
    expects_v1: bool = False

    @functools.cached_property
    def saved(self) -> str:
        """JSON for the file, including the tokens.

        Encoded once: the file contains all records, and is rewritten whenever a tunnel is opened.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["data_plane"]
        account = self.account.key if self.account != UNKNOWN_ACCOUNT else ""
        return json.dumps({**values, "account": account, "way": vars(self.data_plane)})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TunnelRecord:
        """Parse what :attr:`saved` returns. Records of earlier releases have no account and no data plane settings."""
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        settings = data.get("way") or {"endpoint": data.get("endpoint"), "capath": data.get("capath")}
        account = Account.from_key(data["account"]) if data.get("account") else UNKNOWN_ACCOUNT
        lists = {name: tuple(data.get(name, ())) for name in ("services", "any_host")}
        return cls(**{**values, **lists, "account": account, "data_plane": DataPlaneSettings(**settings)})

    @property
    def key(self) -> TunnelKey:
        """The hub's key of the tunnel."""
        return TunnelKey(self.account, self.thing)

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields of structured log records about it."""
        return {"thing": self.thing, "tunnel": self.tunnel_id, "account": str(self.account)}

    @property
    def name(self) -> str:
        """The tunnel's name in messages."""
        known = f" in {self.account}" if self.account != UNKNOWN_ACCOUNT else ""
        return f"{self.tunnel_id}{known}"

    @property
    def known_of_device(self) -> dict[str, Any]:
        """The fields about the device that the thing's next tunnel starts with; it may be another device by then."""
        if self.destination_version == "V3":
            return {"destination_version": "V3"}
        return {"expects_v1": self.expects_v1 or self.destination_version == "V1"}

    def expires_within(self, seconds: float) -> bool:
        """Whether the tunnel expires within that time, or has expired."""
        return self.expires_at is not None and time.time() + seconds >= self.expires_at
