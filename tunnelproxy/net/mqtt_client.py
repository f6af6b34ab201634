# SPDX-License-Identifier: Apache-2.0
"""paho-mqtt's client on a socket that is connected already, which it has no option for.

The one method that is replaced here is not public: paho 2.1 calls it to connect, and a test sees that a later one does.
"""

from __future__ import annotations

import socket

from paho.mqtt.client import Client

__all__ = ["ClientOfSocket"]


class ClientOfSocket(Client):
    """A client whose next connection is made on :attr:`connected_socket`, which it takes; on its own without one."""

    connected_socket: socket.socket | None = None

    def _create_socket_connection(self) -> socket.socket:
        sock, self.connected_socket = self.connected_socket, None
        if sock is None:
            return super()._create_socket_connection()
        sock.settimeout(self.connect_timeout)
        return sock
