# SPDX-License-Identifier: GPL-3.0-or-later
"""paho-mqtt on a socket that is already connected."""

from __future__ import annotations

import socket

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tunnelproxy.net.mqtt_client import ConnectedSocketClient


@pytest.fixture
def client() -> ConnectedSocketClient:
    return ConnectedSocketClient(CallbackAPIVersion.VERSION2, client_id="me")


def test_paho_uses_the_connected_socket(client: ConnectedSocketClient) -> None:
    """By a method that is not public: a release without it would look the name up, and fail."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client.connected_socket = socket.create_connection(listener.getsockname())
        client.connect("broker.invalid", 1883)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100)[:1] == b"\x10"
        assert client.connected_socket is None
        client.disconnect()


def test_without_one_it_connects_by_itself(client: ConnectedSocketClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client.connect("127.0.0.1", listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100)[:1] == b"\x10"
        client.disconnect()
