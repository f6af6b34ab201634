# SPDX-License-Identifier: Apache-2.0
"""The addresses that the agent may connect to, whatever the rest of its configuration says."""

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
        addresses: exactly these; port 0 of a host stands for all its ports.
    """

    addresses: frozenset[Address]

    @classmethod
    def default(cls) -> AllowList:
        """This device only: TCP on the loopback. A Unix socket or another host must be allowed explicitly."""
        return cls(frozenset({TcpAddress("localhost", 0)}))

    @classmethod
    def parse(cls, entries: Iterable[str], where: str) -> AllowList:
        """Read ``PORT``, ``HOST:PORT``, ``HOST:*`` and paths of Unix sockets; ``where`` names the list in errors."""
        return cls(frozenset(_entry(text, where) for text in entries))

    def permits(self, address: Address) -> bool:
        """Whether the agent may connect to an address."""
        if isinstance(address, UnixAddress):
            return address in self.addresses
        plain = _plain(address)
        return plain in self.addresses or TcpAddress(plain.host, 0) in self.addresses

    def permits_at(self, address: TcpAddress, found: str) -> bool:
        """Whether the agent may connect to an allowed host at the address that its name now resolves to.

        The owner of the name's DNS chooses the address, and can change it at any time. So ``localhost`` may only
        resolve to the loopback, and no other name may resolve to this device unless the port is allowed here, too.

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
        """Check that the addresses of all services are allowed.

        Raises:
            ConfigurationError: an address is not allowed; the text names the service.
        """
        for name, address in services.items():
            if address is not None and not self.permits(address):
                raise ConfigurationError(
                    f"{where}: {name} leads to {address}, which the allow list does not have: "
                    f"add '{address}' to 'allow', or change the service"
                )


def _entry(text: str, where: str) -> Address:
    if text.endswith(_ANY_PORT) and not text.startswith("/"):
        # The port does not matter: only the host is used.
        host = parse_address(f"{text[: -len(_ANY_PORT)]}:1", where, Mode.DESTINATION)
        if isinstance(host, TcpAddress):
            return _plain(host)._replace(port=0)
    address = parse_address(text, where, Mode.DESTINATION)
    return _plain(address) if isinstance(address, TcpAddress) else address


def _plain(address: TcpAddress) -> TcpAddress:
    """The address in a canonical spelling: in lower case, and with one name for the loopback."""
    host = (address.host or "localhost").lower()
    return TcpAddress("localhost" if host in _LOOPBACK else host, address.port)


def _ip(text: str) -> IpAddress | None:
    """Parse an address; IPv4 in IPv6 (``::ffff:127.0.0.1``) becomes IPv4. None if the text is not an address."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _is_of_this_device(ip: IpAddress) -> bool:
    """Whether a connection to this address reaches this device: loopback, unspecified, or an interface's address."""
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast:
        return True
    if ip.version == 6 and ip.is_link_local:
        # The scope is missing here, and on each network another host may have the same address.
        return any(_is_source_of(ip, (str(ip), 9, 0, index)) for index, _ in socket.if_nameindex())
    return _is_source_of(ip, (str(ip), 9))


def _is_source_of(ip: IpAddress, address: tuple[Any, ...]) -> bool:
    """Whether this is a local address: only then does the system also connect from it. No packet is sent."""
    with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
        return _ip(probe.getsockname()[0]) == ip
