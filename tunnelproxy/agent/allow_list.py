# SPDX-License-Identifier: Apache-2.0
"""Which addresses the agent may ever connect to, whatever else its configuration says."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union

from ..errors import ConfigurationError
from ..protocol.session import Mode
from ..proxy.addresses import Address, TcpAddress, UnixAddress, parse_address

__all__ = ["AllowList"]

IpAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

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

    def permits_at(self, address: TcpAddress, found: str) -> bool:
        """Whether the agent may connect to a host that is allowed at an address that its name has now.

        Who answers for names chooses what they lead to, and may choose differently each time. So ``localhost`` leads to
        the loopback only; any other name never leads to this device itself, unless that is allowed too, for its port.

        Args:
            found: the address, as text.
        """
        plain, ip = _plain(address), _ip(found)
        here = self.permits(TcpAddress("localhost", address.port))
        if ip is None or plain.host == "localhost":
            return ip is not None and ip.is_loopback and here
        if _ip(plain.host or "") is not None:
            return self.permits(address)
        return self.permits(address) and (here or not _is_of_this_device(ip))

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


def _ip(text: str) -> IpAddress | None:
    """An address as it is meant: of one of IPv4 in IPv6 (``::ffff:127.0.0.1``), the one of IPv4. None if it is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _is_of_this_device(ip: IpAddress) -> bool:
    """Whether what connects there reaches this device: the loopback, any address, or one of a network interface."""
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast:
        return True
    if ip.version == 6 and ip.is_link_local:
        # It comes here without its scope, and there may be another host of the same address on each network.
        return any(_is_source_of(ip, (str(ip), 9, 0, index)) for index, _ in socket.if_nameindex())
    return _is_source_of(ip, (str(ip), 9))


def _is_source_of(ip: IpAddress, address: tuple[Any, ...]) -> bool:
    """Whether the system connects to its own address: from that address only. No packet is sent."""
    with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
        return _ip(probe.getsockname()[0]) == ip
