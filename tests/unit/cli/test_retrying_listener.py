# SPDX-License-Identifier: GPL-3.0-or-later
"""A source's ports that are not free yet, with a source that only listens."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.cli.retrying_listener import RetryingListener
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.proxy.addresses import Address, TcpAddress


class Source:
    """Listens where the test allows it."""

    def __init__(self, *taken: str) -> None:
        ready = asyncio.Event()
        ready.set()
        self.end = SimpleNamespace(ready=ready)
        self.taken = set(taken)
        self.listening: dict[str, TcpAddress] = {}

    async def listen(self, name: str, address: TcpAddress) -> None:
        if name in self.taken:
            raise ConfigurationError(f"{name}: port {address.port} is in use")
        self.listening[name] = address


def listener(retries: int | None = None) -> RetryingListener:
    def plan(offered: tuple[str, ...]) -> dict[str, Address | None]:
        return {name: TcpAddress(None, port) for port, name in enumerate(offered, 5000)}

    made = RetryingListener(plan, "127.0.0.1", retries, 0.001)
    assert made.plan(("SSH1", "HTTP1")) == {"SSH1": None, "HTTP1": None}
    return made


async def run(made: RetryingListener, source: Any) -> None:
    await made.run(source)


@in_event_loop
async def test_each_service_listens_on_the_bind_address() -> None:
    made, source = listener(), Source()
    await run(made, source)
    assert source.listening == {"SSH1": TcpAddress("127.0.0.1", 5000), "HTTP1": TcpAddress("127.0.0.1", 5001)}
    assert made.begun.is_set()


@in_event_loop
async def test_a_port_in_use_is_retried_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    made, source = listener(retries=1), Source("HTTP1")
    running = asyncio.create_task(run(made, source))
    await made.begun.wait()
    # One service listens, so that the retries are not limited.
    await asyncio.sleep(0)
    assert not running.done()
    source.taken.clear()
    await until(running.done)
    assert set(source.listening) == {"SSH1", "HTTP1"}
    assert caplog.text.count("HTTP1: port 5001 is in use; trying again every 0.001 s") == 1


@in_event_loop
async def test_it_gives_up_where_no_service_could_listen() -> None:
    with pytest.raises(ConfigurationError, match=r"^SSH1: port 5000 is in use; HTTP1: port 5001 is in use$"):
        await run(listener(retries=2), Source("SSH1", "HTTP1"))
