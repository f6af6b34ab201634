# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of the tunneling service per tunnel, and whether OpenTunnel slows down as the number of tunnels grows.

Opens tunnels, connects both ends of each, and measures the process of the service:

    python -m benchmarks service --tunnels 1000
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import ssl
import statistics
import time
from typing import Any

import psutil
from websockets.asyncio.client import ClientConnection, connect

from peers.service import TunnelingService

SAMPLES = 50
AT_ONCE = 40


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks service", description=__doc__.splitlines()[0])
    parser.add_argument("--tunnels", type=int, default=1000, metavar="N", help="number of tunnels (%(default)s)")
    number = parser.parse_args(arguments).tunnels
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with TunnelingService("-v", "2") as service:
        asyncio.run(measure(service, number))


async def measure(service: TunnelingService, number: int) -> None:
    client = service.boto3_client()
    process = psutil.Process(service.pid)
    time_open_tunnel(client)
    report("OpenTunnel, no tunnel connected", time_open_tunnel(client))
    before = process.memory_info().rss
    opened = [open_tunnel(client) for _ in range(number)]
    after_opening = process.memory_info().rss
    connections = await connect_all(service, opened)
    connected = process.memory_info().rss
    print(f"{number} tunnels open: {(after_opening - before) / number / 1024:.1f} KiB each")
    print(f"both ends connected: {(connected - after_opening) / number / 1024:.1f} KiB more each")
    print(f"the whole service: {before / 2**20:.1f} MiB before, {connected / 2**20:.1f} MiB now")
    report(f"OpenTunnel, {number} tunnels with both ends connected", time_open_tunnel(client))
    described = client.describe_tunnel(tunnelId=opened[-1]["tunnelId"])["tunnel"]
    if described["destinationConnectionState"]["status"] != "CONNECTED":
        raise SystemExit("the destination of the last tunnel is not connected: the results are void")
    await asyncio.gather(*(connection.close() for connection in connections))


def open_tunnel(client: Any) -> dict[str, str]:
    answer: dict[str, str] = client.open_tunnel(destinationConfig={"thingName": "pump", "services": ["SSH1"]})
    return answer


def time_open_tunnel(client: Any) -> list[float]:
    """The duration of consecutive boto3 calls over one connection, in milliseconds."""
    times = []
    for _ in range(SAMPLES):
        started = time.perf_counter()
        open_tunnel(client)
        times.append((time.perf_counter() - started) * 1000)
    return times


async def connect_all(service: TunnelingService, opened: list[dict[str, str]]) -> list[ClientConnection]:
    context = ssl.create_default_context(capath=service.ca)
    turns = asyncio.Semaphore(AT_ONCE)

    async def join(mode: str, token: str) -> ClientConnection:
        async with turns:
            connection = await connect(
                f"wss://{service.data}/tunnel?local-proxy-mode={mode}",
                ssl=context,
                subprotocols=["aws.iot.securetunneling-3.0"],  # type: ignore[list-item] - a NewType of str
                additional_headers={"access-token": token},
                compression=None,
                proxy=None,
            )
            await connection.recv()
            return connection

    modes = ("source", "destination")
    return list(
        await asyncio.gather(*(join(mode, tunnel[f"{mode}AccessToken"]) for tunnel in opened for mode in modes))
    )


def report(what: str, times: list[float]) -> None:
    times = sorted(times)
    print(f"{what}: median {statistics.median(times):.1f} ms, 95 % within {times[int(len(times) * 0.95)]:.1f} ms")
