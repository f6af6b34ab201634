# SPDX-License-Identifier: Apache-2.0
"""Which addresses the agent may ever connect to, whatever else its configuration says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..addresses import Address, TcpAddress, UnixAddress, parse_address
from ..errors import ConfigurationError
from ..protocol.session import Mode

__all__ = ["AllowList"]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY_PORT = ":*"


@dataclass(frozen=True)
class AllowList:
    """The addresses that are allowed.

    Attributes:
        addresses: these, exactly; port 0 of a host stands for all of its ports.
    """

    addresses: frozenset[Address]

    @classmethod
    def default(cls) -> AllowList:
        """This device itself: TCP on the loopback. A Unix socket or another host has to be allowed."""
        return cls(frozenset({TcpAddress("localhost", 0)}))

    @classmethod
    def parse(cls, entries: Iterable[str], where: str) -> AllowList:
        """Read ``PORT``, ``HOST:PORT``, ``HOST:*`` and paths of Unix sockets; ``where`` names the list in errors."""
        return cls(frozenset(_entry(text, where) for text in entries))

    def permits(self, address: Address) -> bool:
        """Whether the agent may connect there."""
        if isinstance(address, UnixAddress):
            return address in self.addresses
        plain = _plain(address)
        return plain in self.addresses or TcpAddress(plain.host, 0) in self.addresses

    def check(self, services: Mapping[str, Address | None], where: str) -> None:
        """See that all services lead to allowed addresses.

        Raises:
            ConfigurationError: one does not; it is named.
        """
        for name, address in services.items():
            if address is not None and not self.permits(address):
                raise ConfigurationError(
                    f"{where}: {name} leads to {address}, which the allow list does not have: "
                    f"add '{address}' to 'allow', or change the service"
                )


def _entry(text: str, where: str) -> Address:
    if text.endswith(_ANY_PORT) and not text.startswith("/"):
        # Any port will do to have the host read.
        host = parse_address(f"{text[: -len(_ANY_PORT)]}:1", where, Mode.DESTINATION)
        if isinstance(host, TcpAddress):
            return _plain(host)._replace(port=0)
    address = parse_address(text, where, Mode.DESTINATION)
    return _plain(address) if isinstance(address, TcpAddress) else address


def _plain(address: TcpAddress) -> TcpAddress:
    """The same under one name: upper case and the names of the loopback make no difference."""
    host = (address.host or "localhost").lower()
    return TcpAddress("localhost" if host in _LOOPBACK else host, address.port)
