# SPDX-License-Identifier: GPL-3.0-or-later
"""All devices of a fleet in one process: one MQTT connection in total, and one destination proxy for each device.

``python -m benchmarks.device_swarm BROKER_PORT SERVER_PORT ENDPOINT CAPATH`` connects every service of
every thing to the same server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import uuid
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from tunnelproxy.agent.notification import notify_topic, read_notification
from tunnelproxy.cli.process import new_event_loop
from tunnelproxy.net.descriptor_limit import allow_many_files
from tunnelproxy.net.endpoint import Endpoint
from tunnelproxy.net.route import find_route
from tunnelproxy.protocol.session import Mode
from tunnelproxy.proxy.addresses import TcpAddress
from tunnelproxy.proxy.destination import DestinationProxy
from tunnelproxy.proxy.link import TunnelCredentials


def main() -> None:
    """Serve every tunnel that a notification announces, until killed."""
    broker_port, server_port, endpoint, capath = sys.argv[1:]
    allow_many_files()
    logging.basicConfig(level=logging.WARNING)
    loop = new_event_loop()
    address = TcpAddress("127.0.0.1", int(server_port))
    route = find_route(Endpoint.parse(endpoint), os.environ, capath=capath)
    tasks = set()

    async def serve(payload: bytes) -> None:
        access = TunnelCredentials(Mode.DESTINATION, read_notification(payload).token, str(uuid.uuid4()))
        await DestinationProxy(route, access, lambda offered: dict.fromkeys(offered, address)).run()

    def notified(payload: bytes) -> None:
        task = loop.create_task(serve(payload))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def subscribed(*_: Any) -> None:
        print("ready", flush=True)

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: client.subscribe(notify_topic("+"), qos=1)
    client.on_subscribe = subscribed
    client.on_message = lambda _client, _data, message: loop.call_soon_threadsafe(notified, message.payload)
    client.connect("127.0.0.1", int(broker_port))
    client.loop_start()
    asyncio.set_event_loop(loop)
    loop.run_forever()


if __name__ == "__main__":
    main()
