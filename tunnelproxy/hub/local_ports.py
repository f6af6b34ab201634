# SPDX-License-Identifier: Apache-2.0
"""The ports on the loopback that a tunnel's services may listen on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from ..errors import ConfigurationError
from ..net.ipv6_loopback import reserve
from .location import HubError

__all__ = ["check_port", "is_free", "is_http", "is_ssh", "port_in_use", "reason_of"]


def check_port(service_id: str, port: int | None, thing: str, *, own_ports: Collection[int]) -> None:
    """Check that a service can listen on a port.

    Args:
        port: 0 for any port, None for none.
        own_ports: the ports that the thing's services already have.

    Raises:
        HubError: it cannot.
    """
    if is_ssh(service_id) and port is not None:
        raise HubError(
            f"{service_id} of {thing} cannot have a port: other users of this machine could reach the device through "
            "it, and ssh needs none. Remove it from iotops_tunnel_ports, or the option ports",
            code="bad-input",
        )
    if port and port not in own_ports and not is_free(service_id, port):
        raise port_in_use(service_id, port, thing, "another program listens there")


def port_in_use(service_id: str, port: int | None, thing: str, why: str) -> HubError:
    """The error for a service that cannot have a port."""
    return HubError(
        f"{service_id} of {thing} cannot have port {port} on 127.0.0.1: {why}. Choose another (iotops_tunnel_ports, or "
        f"the option ports), or {service_id}=any",
        code="port-in-use",
    )


def is_free(service_id: str, port: int) -> bool:
    """Whether a service can listen on a port of the loopback; for browsers, both of IPv4's and of IPv6's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            reserved = reserve(port) if is_http(service_id) else None
        except OSError:
            return False
    if reserved is not None:
        reserved.close()
    return True


def reason_of(error: ConfigurationError) -> str:
    """Why a listener could not be opened: the system's error message, if there is one."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
        return "another program listens there"
    return cause.strerror or str(cause) if isinstance(cause, OSError) else str(error)


def is_ssh(service_id: str) -> bool:
    """Whether the service is SSH by its ID, such as ``SSH1``."""
    return service_id.upper().startswith("SSH")


def is_http(service_id: str) -> bool:
    """Whether the service is HTTP or HTTPS by its ID, such as ``HTTP1``."""
    return service_id.upper().startswith("HTTP")
