# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent, its MQTT session and its service manager, with a broker in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from tunnelproxy.agent.agent import run_agent
from tunnelproxy.agent.config import AgentConfig, read_config

CONNACK = b"\x20\x02\x00\x00"
TOPIC = b"$aws/things/pump/tunnels/notify"


class Broker:
    """Accepts every login and subscription; publishes what a test wants."""

    def __init__(self) -> None:
        self.port = 0
        self.subscriptions: list[bytes] = []
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await _packet(reader)
            writer.write(CONNACK)
            subscribe = await _packet(reader)
            writer.write(b"\x90\x03" + subscribe[2:4] + b"\x01")
            self._writer = writer
            self.subscriptions.append(subscribe[6:-1])
            await reader.read()
        writer.close()

    def publish(self, payload: bytes) -> None:
        assert self._writer is not None
        body = len(TOPIC).to_bytes(2, "big") + TOPIC + b"\x00\x07" + payload
        self._writer.write(bytes([0x32, len(body)]) + body)

    def close(self) -> None:
        assert self._writer is not None
        self._writer.close()


async def _packet(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    return head + await reader.readexactly(head[1])


@asynccontextmanager
async def broker() -> AsyncIterator[Broker]:
    made = Broker()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        yield made


@asynccontextmanager
async def agent_of(config: AgentConfig, port: int) -> AsyncIterator[list[str]]:
    """Run an agent; gives what it tells the service manager."""
    told: list[str] = []
    config = dataclasses.replace(config, broker=dataclasses.replace(config.broker, port=port))
    running = asyncio.create_task(run_agent(config, lambda *assignments: told.extend(assignments)))
    try:
        yield told
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture
def config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AgentConfig:
    caplog.set_level(logging.INFO)
    path = tmp_path / "agent.yml"
    path.write_text(
        "thing: pump\nbroker: {host: 127.0.0.1, tls: false, user: u, password: p}\nservices: {SSH1: 22}\n"
        "state_dir: state\n"
    )
    path.chmod(0o640)
    return read_config(path, {})


@in_event_loop
async def test_an_agent_is_ready_before_its_broker_is_there(config: AgentConfig) -> None:
    async with agent_of(config, 1) as told:
        await until(lambda: told)
    assert told == ["READY=1", "STATUS=connecting to the MQTT broker 127.0.0.1:1"]


@in_event_loop
async def test_it_subscribes_to_the_notifications_of_its_thing(config: AgentConfig) -> None:
    async with broker() as there, agent_of(config, there.port) as told:
        await until(lambda: len(told) == 3)
        assert told[-1] == f"STATUS=waiting for notifications from the MQTT broker 127.0.0.1:{there.port}"
        assert there.subscriptions == [TOPIC]


@in_event_loop
async def test_what_arrives_is_read_as_a_notification(config: AgentConfig, caplog: pytest.LogCaptureFixture) -> None:
    async with broker() as there, agent_of(config, there.port):
        await until(lambda: there.subscriptions)
        there.publish(b"nonsense")
        await until(lambda: "notification refused: it is not JSON" in caplog.text)


@in_event_loop
async def test_the_service_manager_learns_of_a_lost_connection(config: AgentConfig) -> None:
    async with broker() as there, agent_of(config, there.port) as told:
        await until(lambda: len(told) == 3)
        there.close()
        await until(lambda: len(told) == 4)
        assert told[-1] == f"STATUS=no connection to the MQTT broker 127.0.0.1:{there.port}"


@in_event_loop
async def test_what_the_operator_should_know_is_logged_first(
    config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with agent_of(config, 1) as told:
        await until(lambda: told)
    messages = [record.getMessage() for record in caplog.records]
    assert "its group can read it" in messages[0]
    assert "tokens can be read on the network" in messages[1]
    assert messages[2] == "starting as the agent of pump"


@in_event_loop
async def test_systemds_watchdog_is_fed(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    async with agent_of(config, 1) as told:
        await until(lambda: told.count("WATCHDOG=1") >= 3)
