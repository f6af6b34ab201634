# SPDX-License-Identifier: Apache-2.0
"""paho-mqtt's client on a socket that is already connected, for which paho has no option.

The overridden method is not public: paho 2.1 calls it to connect, and a test checks that newer releases do.
"""

from __future__ import annotations

import socket

from paho.mqtt.client import Client

__all__ = ["ConnectedSocketClient"]


class ConnectedSocketClient(Client):
    """A client that uses :attr:`connected_socket`, once, for its next connection; without one it connects by itself."""

    connected_socket: socket.socket | None = None

    def _create_socket_connection(self) -> socket.socket:
        sock, self.connected_socket = self.connected_socket, None
        if sock is None:
            return super()._create_socket_connection()
        sock.settimeout(self.connect_timeout)
        return sock
