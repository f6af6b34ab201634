# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hub does with requests, each of them asked by the client of a hub in the same event loop."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop, until
from peers.hub_in_process import ACCOUNT, InProcessService, call_hub, device, running_hub, running_service
from peers.process import free_port
from tunnelproxy.hub import client, requests
from tunnelproxy.hub import hub as hub_module
from tunnelproxy.hub.hub import Hub
from tunnelproxy.hub.location import HubError
from tunnelproxy.hub.ssh_names import SshNames
from tunnelproxy.hub.tunnel_record import TunnelRecord
from tunnelproxy.hub.wire import Caller

ENSURE: dict[str, Any] = {"owner": "me", "unregistered": True, "wait": 5.0}


@asynccontextmanager
async def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InProcessService]:
    monkeypatch.setattr(hub_module, "DESTINATION_POLL_SECONDS", (0.01, 0.01))
    async with running_service(folder / "service") as service, running_hub(service, folder / "hub", monkeypatch):
        yield service


async def ensure(at: InProcessService, thing: str = "pump", **settings: Any) -> Any:
    return await call_hub(client.ensure, thing, caller=at.caller, **{**ENSURE, "open_policy": "reuse", **settings})


class TestEnsure:
    @in_event_loop
    async def test_a_tunnel_is_opened_once_for_all_who_ask_and_its_device_awaited(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            loop = asyncio.get_running_loop()
            asking = [loop.create_task(ensure(service)) for _ in range(3)]
            await until(lambda: "pump" in service.destination_tokens)
            await until(lambda: "end_states" in service.asked)
            assert (await call_hub(client.status))["opening"] == ["pump"]
            async with device(service, "pump"):
                rows = await asyncio.gather(*asking)
            assert len({row["tunnel_id"] for row in rows}) == 1
            assert service.asked.count("open") == 1
            assert (await call_hub(client.status))["opening"] == []

    @in_event_loop
    async def test_a_device_that_does_not_come_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            with pytest.raises(HubError, match=r"did not connect to its tunnel .* within 0 s") as caught:
                await ensure(service, wait=0.0)
            assert caught.value.code == "device-not-connected"
            # It has had its time.
            assert (await ensure(service, wait=0.0))["state"] == "connected"

    @in_event_loop
    async def test_a_device_that_nobody_can_say_anything_of_is_told_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            service.failures["end_states"] = HubError("throttled", code="throttled")
            with pytest.raises(HubError, match="it is not known whether the device pump has connected") as caught:
                await ensure(service, wait=0.0)
            assert caught.value.code == "device-unknown"

    @in_event_loop
    async def test_a_tunnel_that_was_taken_over_is_told_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            service.open("pump", owner="you")
            async with device(service, "pump"):
                assert (await ensure(service, open_policy="take_over"))["taken_from"] == "you"
                assert (await ensure(service, open_policy="take_over"))["taken_from"] == ""

    @in_event_loop
    async def test_never_opens_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            with pytest.raises(HubError, match="there is no tunnel to pump in 123456789012/eu-central-1") as caught:
                await ensure(service, open_policy="never")
            assert (caught.value.code, service.asked) == ("no-tunnel", ["identify"])

    @in_event_loop
    async def test_a_tunnel_that_was_closed_is_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            service.open("pump")
            async with device(service, "pump"):
                first = await ensure(service, ports={"HTTP1": 0})
            service.close(first["tunnel_id"])
            service.open("pump")
            async with device(service, "pump"):
                second = await ensure(service)
                assert second["tunnel_id"] != first["tunnel_id"]
                # Where its service listened, it listens again.
                assert second["services"]["HTTP1"]["port"] == first["services"]["HTTP1"]["port"]

    @in_event_loop
    async def test_a_caller_who_reaches_the_data_plane_another_way_links_the_tunnel(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            tunnel = service.open("pump")
            async with device(service, "pump"):
                nowhere = {**service.environment, "AWSIOT_TUNNEL_ENDPOINT": f"127.0.0.1:{free_port()}"}
                with pytest.raises(HubError, match="is not linked"):
                    await call_hub(
                        client.adopt,
                        "pump",
                        tunnel_id=tunnel.tunnel_id,
                        tunnel_arn=tunnel.arn,
                        source_token=tunnel.source_token,
                        services=tunnel.services,
                        caller=Caller(nowhere, "/"),
                        timeout=0.2,
                    )
                row = await ensure(service, open_policy="never", timeout=1.0)
                assert row["state"] == "connected"

    @in_event_loop
    async def test_a_port_that_another_thing_has_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            for thing in ("pump", "valve"):
                service.open(thing)
            async with device(service, "pump"), device(service, "valve"):
                port = (await ensure(service))["services"]["HTTP1"]["port"]
                with pytest.raises(HubError, match=f"port {port} on 127.0.0.1: HTTP1 of pump uses it") as caught:
                    await ensure(service, "valve", ports={"HTTP1": port})
                assert caught.value.code == "port-in-use"
                with pytest.raises(HubError, match="does not offer VNC"):
                    await ensure(service, "valve", service="VNC")

    @in_event_loop
    async def test_several_things_get_any_port_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        things = [f"pump{number}" for number in range(3)]
        async with hub(tmp_path, monkeypatch) as service, AsyncExitStack() as devices:
            for thing in things:
                service.open(thing)
                await devices.enter_async_context(device(service, thing))
            rows = await asyncio.gather(*(ensure(service, thing, ports={"HTTP1": 0}) for thing in things))
            assert len({row["services"]["HTTP1"]["port"] for row in rows} - {0}) == len(things)

    @in_event_loop
    async def test_an_account_that_is_not_known_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            service.failures["identify"] = HubError("the keys are not accepted", code="wrong-credentials")
            with pytest.raises(HubError, match="no tunnel to pump could be found or opened: the keys") as caught:
                await ensure(service)
            assert caught.value.code == "wrong-credentials"


class TestOtherRequests:
    @in_event_loop
    async def test_a_tunnel_of_another_program_is_prepared_adopted_used_and_released(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            service.store.put_thing("pump")
            prepared = await call_hub(client.prepare, "pump", ["SSH1"], caller=service.caller)
            assert prepared == {"protocol": 2, "account": ACCOUNT, "region": "eu-central-1"}
            assert "ssh_name" not in await call_hub(client.locate, None, caller=service.caller)
            assert (await call_hub(client.locate, "pump", caller=service.caller))["ssh_name"] == "pump"
            tunnel = service.open("pump")
            adopt = {
                "tunnel_id": tunnel.tunnel_id,
                "tunnel_arn": tunnel.arn,
                "source_token": tunnel.source_token,
                "services": tunnel.services,
                "caller": service.caller,
            }
            async with device(service, "pump"):
                await call_hub(client.adopt, "pump", **adopt)
                first = await call_hub(client.adopt, "pump", **adopt, ports={"HTTP1": None})
                assert first["services"]["HTTP1"]["port"] is None
                stream = await call_hub(client.open_stream, "pump", "SSH1", account=ACCOUNT)
                os.close(stream)
                assert await call_hub(client.holds, tunnel.tunnel_id, ACCOUNT)
                assert await call_hub(client.release, tunnel.tunnel_id, ACCOUNT)

    @in_event_loop
    async def test_an_account_s_key_that_is_none_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch):
            with pytest.raises(HubError, match="'somewhere' does not name an account"):
                await call_hub(client.open_stream, "pump", "SSH1", account="somewhere")

    @in_event_loop
    async def test_a_call_that_fails_says_what_it_was_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            service.failures["call"] = HubError("it is throttled", code="throttled")
            with pytest.raises(HubError, match=r"Could not list things: it is throttled\.") as caught:
                await call_hub(client.call, "list_things", {}, purpose="list things", caller=service.caller)
            assert caught.value.code == "throttled"

    @in_event_loop
    async def test_an_arn_that_is_none_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            with pytest.raises(HubError, match="'arn' is not an ARN of AWS IoT") as caught:
                await call_hub(
                    client.adopt,
                    "pump",
                    tunnel_id="id",
                    tunnel_arn="arn",
                    source_token="t",
                    services=["SSH1"],
                    caller=service.caller,
                )
            assert caught.value.code == "bad-input"

    @in_event_loop
    async def test_a_tunnel_that_is_not_held_is_not_released(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch):
            assert not await call_hub(client.release, "id", ACCOUNT)

    @in_event_loop
    async def test_a_device_that_went_away_is_why_a_stream_gave_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with hub(tmp_path, monkeypatch) as service:
            service.open("pump")
            async with device(service, "pump"):
                await ensure(service)
            described = await call_hub(client.describe, "pump", caller=service.caller)
            assert described["destination"] == "disconnected"
            why = await call_hub(client.explain, "pump", "SSH1", refused=True, caller=service.caller)
            assert why.code == "device-not-connected"


@in_event_loop
async def test_a_tunnel_of_an_earlier_release_gets_the_account_that_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(tmp_path / "service") as service:
        tunnel = service.open("pump")
        (tmp_path / "hub").mkdir(mode=0o700)
        saved = {
            "thing": "pump",
            "tunnel_id": tunnel.tunnel_id,
            "region": "eu-central-1",
            "source_token": tunnel.source_token,
            "services": ["SSH1"],
            "endpoint": service.environment["AWSIOT_TUNNEL_ENDPOINT"],
            "capath": service.environment["AWSIOT_TUNNEL_CAPATH"],
            "expires_at": time.time() + 3600,
        }
        (tmp_path / "hub" / "tunnels.jsonl").write_text(json.dumps(saved) + "\n")
        async with running_hub(service, tmp_path / "hub", monkeypatch), device(service, "pump"):
            assert (await call_hub(client.status))["tunnels"][0]["account"] == ""
            row = await ensure(service, open_policy="never")
            assert (row["account"], row["owner"]) == (ACCOUNT, "me")


@in_event_loop
async def test_its_files_are_written_again_where_its_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service(tmp_path / "service") as service:
        for folder in ("before", "after"):
            (tmp_path / folder).mkdir()
        held = Hub(tmp_path / "before", SshNames(tmp_path / "before" / "names.jsonl"))
        assert held.idle_for(0)
        assert not held.idle_for(60)
        held.move(tmp_path / "after")
        assert sorted(path.name for path in (tmp_path / "after").iterdir()) == [
            "accounts.jsonl",
            "names.jsonl",
            "tunnels.jsonl",
        ]
        await held.tidy()
        assert (held.busy, await held.hand_over()) == (False, [])
        tunnel = service.open("pump")
        record = TunnelRecord("pump", tunnel.tunnel_id, "eu-central-1", tunnel.source_token)
        assert await held.answer(requests.Inherit((record,))) == ({}, None)
        assert [row["thing"] for row in (await held.answer(requests.Status()))[0]["tunnels"]] == ["pump"]
        assert await held.answer(requests.Stop()) == ({"stopping": True}, None)
        assert held.stopping.is_set()
        await held.stop()
