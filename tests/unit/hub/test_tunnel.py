# SPDX-License-Identifier: GPL-3.0-or-later
"""One tunnel of the hub, with a data plane and a device in the same event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from peers.event_loop import in_event_loop, until
from peers.hub_in_process import ACCOUNT, InProcessService, call_hub, device, running_service
from peers.process import free_port
from tunnelproxy.errors import ConfigurationError
from tunnelproxy.hub import tunnel as tunnel_module
from tunnelproxy.hub.account import Account
from tunnelproxy.hub.location import HubError
from tunnelproxy.hub.tunnel import ManagedTunnel
from tunnelproxy.hub.tunnel_record import DataPlaneSettings, TunnelRecord


def record_of(service: InProcessService, thing: str = "pump") -> TunnelRecord:
    opened = service.open(thing)
    return TunnelRecord(
        thing,
        opened.tunnel_id,
        "eu-central-1",
        opened.source_token,
        account=Account.from_key(ACCOUNT),
        owner="me",
        services=opened.services,
        data_plane=DataPlaneSettings.from_environment(service.environment, "/"),
    )


@asynccontextmanager
async def managed(record: TunnelRecord) -> AsyncIterator[ManagedTunnel]:
    tunnel = ManagedTunnel(record)
    try:
        yield tunnel
    finally:
        await tunnel.stop()


@in_event_loop
async def test_a_stream_carries_what_the_device_says_and_echoes(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        record = record_of(service)
        async with device(service, "pump"), managed(record) as tunnel:
            await tunnel.wait_linked(5)
            with await tunnel.open_stream("SSH1", 5, speaks_first=True) as stream:
                assert await call_hub(stream.recv, 4) == b"SSH-"
                assert tunnel.busy
            await until(lambda: not tunnel.busy)
            row = tunnel.row()
            assert (row["state"], row["cause"], row["owner"], row["account"]) == ("connected", None, "me", ACCOUNT)
            assert row["services"]["SSH1"]["port"] is None
            assert row["services"]["SSH1"]["bytes_out"] > 4
            assert row["services"]["HTTP1"]["url"] == f"http://pump.localhost:{tunnel.ports['HTTP1']}/"


@in_event_loop
async def test_services_listen_where_the_user_wants_them_to(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        record = record_of(service)
        async with device(service, "pump"), managed(record) as tunnel:
            await tunnel.wait_linked(5)
            before, wanted = tunnel.ports["HTTP1"], free_port()
            await tunnel.listen({"HTTP1": 0})
            assert tunnel.ports["HTTP1"] == before
            await tunnel.listen({"HTTP1": wanted}, ["HTTP1"])
            assert (tunnel.ports["HTTP1"], tunnel.record.any_host) == (wanted, ("HTTP1",))
            assert tunnel.up_to_date().ports == {"HTTP1": wanted}
            await tunnel.listen({"HTTP1": wanted})
            assert tunnel.record.any_host == ()
            other = socket.create_server(("127.0.0.1", 0))
            with other, pytest.raises(HubError, match="another program listens there"):
                await tunnel.listen({"HTTP1": other.getsockname()[1]})
            await tunnel.stop_listening()
            assert tunnel.ports == {}
            with pytest.raises(HubError, match="does not offer VNC; it carries SSH1, HTTP1"):
                await tunnel.listen({"VNC": 0})


@in_event_loop
async def test_it_listens_again_where_it_did_unless_that_is_taken(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        record = record_of(service)
        port = free_port()
        async with device(service, "pump"):
            async with managed(replace(record, ports={"HTTP1": port})) as tunnel:
                await tunnel.wait_linked(5)
                assert tunnel.ports == {"HTTP1": port}
            async with managed(replace(record, chosen_ports={"HTTP1": None})) as tunnel:
                await tunnel.wait_linked(5)
                assert tunnel.ports == {}
            with socket.create_server(("127.0.0.1", 0)) as other:
                taken = other.getsockname()[1]
                async with managed(replace(record, chosen_ports={"HTTP1": taken})) as tunnel:
                    await tunnel.wait_linked(5)
                    assert tunnel.ports == {}


@in_event_loop
async def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service, managed(record_of(service)) as tunnel:
        await tunnel.wait_linked(5)
        with pytest.raises(HubError, match="the device pump refused SSH1") as caught:
            await tunnel.open_stream("SSH1", 5, speaks_first=True)
        assert caught.value.code == "refused"


@in_event_loop
async def test_a_server_that_says_nothing_is_named_in_time(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        record = record_of(service)
        async with device(service, "pump", banner=b""), managed(record) as tunnel:
            await tunnel.wait_linked(5)
            with pytest.raises(HubError, match="the device pump did not answer on SSH1 in time") as caught:
                await tunnel.open_stream("SSH1", 0.05, speaks_first=True)
            assert caught.value.code == "no-answer"
            with await tunnel.open_stream("SSH1", 5, speaks_first=False) as stream:
                await call_hub(stream.sendall, b"hello")
                assert await call_hub(stream.recv, 5) == b"hello"


@in_event_loop
async def test_a_device_s_silence_is_told_with_the_state_of_its_end(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        record = record_of(service)
        async with device(service, "pump", banner=b""), managed(record) as tunnel:
            await tunnel.wait_linked(5)
            why = await tunnel.explain("SSH1", refused=True)
            assert "refused SSH1 (or it is not connected: the control API did not answer)" in why.message


@in_event_loop
async def test_a_tunnel_that_was_closed_is_not_alive_and_says_so(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        record = record_of(service)
        async with device(service, "pump"), managed(record) as tunnel:
            await tunnel.wait_linked(5)
            service.close(record.tunnel_id)
            await until(lambda: not tunnel.alive)
            assert (tunnel.failed, tunnel.row()["state"]) == (True, "tunnel-closed")
            with pytest.raises(HubError, match="was closed: open another"):
                await tunnel.wait_linked(5)


@in_event_loop
async def test_a_token_that_is_refused_is_explained_by_the_control_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(tmp_path) as service:
        record = replace(record_of(service), source_token="AQ" + "x" * 60)
        async with managed(record) as tunnel:
            await tunnel.settle(5)
            await until(lambda: not tunnel.alive)
            why = await tunnel.explain("SSH1", refused=True)
            assert (why.code, "does not work" in why.message) == ("token-unknown", True)

            async def never() -> None:
                await asyncio.Event().wait()

            monkeypatch.setattr(tunnel, "ask_ends", never)
            monkeypatch.setattr(tunnel_module, "EXPLAIN_SECONDS", 0.01)
            assert (await tunnel.explain("SSH1", refused=True)).code == "token-unknown"


@in_event_loop
async def test_a_data_plane_that_does_not_answer_is_told(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        settings = replace(record_of(service).data_plane, endpoint=f"127.0.0.1:{free_port()}")
        async with managed(replace(record_of(service), data_plane=settings)) as tunnel:
            with pytest.raises(HubError, match="is not linked: ") as caught:
                await tunnel.wait_linked(1)
            assert (caught.value.code, tunnel.row()["state"]) == ("not-linked", "connecting")


@in_event_loop
async def test_settings_that_are_not_valid_are_refused(tmp_path: Path) -> None:
    record = TunnelRecord("pump", "id", "eu-central-1", "t", data_plane=DataPlaneSettings("nowhere:"))
    with pytest.raises(ConfigurationError):
        ManagedTunnel(record)


@in_event_loop
async def test_a_program_s_host_is_all_that_passes_the_guard(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        record = record_of(service)
        async with device(service, "pump", banner=b""), managed(record) as tunnel:
            await tunnel.wait_linked(5)
            reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.ports["HTTP1"])
            writer.write(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 421")
            writer.close()


@in_event_loop
async def test_whoever_waited_for_the_device_waits_no_longer(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service, managed(replace(record_of(service), awaited_since=1.0)) as tunnel:
        tunnel.stop_awaiting()
        assert tunnel.record.awaited_since is None
