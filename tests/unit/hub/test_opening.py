# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked before a tunnel is paid for, and which tunnel a policy finds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop
from peers.hub_in_process import ACCOUNT, Control, InProcessService, running_service
from peers.process import free_port
from tunnelproxy.hub.account import Account, TunnelKey
from tunnelproxy.hub.control_process import CallerControl, Callers
from tunnelproxy.hub.known_accounts import KnownAccounts
from tunnelproxy.hub.location import HubError
from tunnelproxy.hub.opening import TunnelOpener, check_name
from tunnelproxy.hub.requests import Ensure, ServicePlan

KEY = TunnelKey(Account.from_key(ACCOUNT), "pump")
PLAN = ServicePlan(("SSH1", "HTTP1"), {}, ())


@asynccontextmanager
async def control(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[InProcessService, CallerControl]]:
    async with running_service(folder) as service:

        async def start(self: Callers, control: object) -> Control:
            return Control(service)

        monkeypatch.setattr(Callers, "start", start)
        service.store.put_thing("pump")
        yield service, Callers(KnownAccounts(folder / "accounts")).of(service.caller)


def request(service: InProcessService, policy: str, owner: str = "me") -> Ensure:
    return Ensure("pump", "SSH1", policy, PLAN, 1.0, 1.0, owner, False, service.caller)


async def opened(opener: TunnelOpener, caller: CallerControl, request: Ensure, held: tuple[str, ...] = ()) -> Any:
    return await opener.find_or_open(KEY, caller, request, held=held, own_ports=())


class TestPolicies:
    @in_event_loop
    async def test_reuse_finds_a_tunnel_of_one_s_own_and_else_opens_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with control(tmp_path, monkeypatch) as (service, caller):
            opener, theirs = TunnelOpener(), service.open("pump", owner="you")
            mine = await opened(opener, caller, request(service, "reuse"))
            assert mine.tunnel_id != theirs.tunnel_id
            again = await opened(opener, caller, request(service, "reuse"))
            assert (again.tunnel_id, again.taken_from) == (mine.tunnel_id, "")
            third = await opened(opener, caller, request(service, "reuse"), held=(mine.tunnel_id,))
            assert third.tunnel_id not in (mine.tunnel_id, theirs.tunnel_id)

    @in_event_loop
    async def test_take_over_finds_anybody_s(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with control(tmp_path, monkeypatch) as (service, caller):
            theirs = service.open("pump", owner="you")
            found = await opened(TunnelOpener(), caller, request(service, "take_over"))
            assert (found.tunnel_id, found.taken_from) == (theirs.tunnel_id, "you")

    @in_event_loop
    async def test_always_opens_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with control(tmp_path, monkeypatch) as (service, caller):
            mine = service.open("pump")
            found = await opened(TunnelOpener(), caller, request(service, "always"))
            assert found.tunnel_id != mine.tunnel_id
            assert "take" not in service.asked


class TestChecks:
    @in_event_loop
    async def test_a_thing_that_is_not_registered_gets_no_tunnel(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with control(tmp_path, monkeypatch) as (service, caller):
            service.store.remove_thing("pump")
            with pytest.raises(HubError, match=r"no tunnel to pump in .* found or opened: the registry has no thing"):
                await opened(TunnelOpener(), caller, request(service, "always"))
            assert "open" not in service.asked
            await opened(TunnelOpener(), caller, replace(request(service, "always"), unregistered=True))

    @in_event_loop
    async def test_a_data_plane_that_cannot_be_reached_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with control(tmp_path, monkeypatch) as (service, caller):
            service.port = free_port()
            for settings, code in ((service.caller, "not-linked"), (None, "bad-input")):
                bad = settings or replace(service.caller, environment={"AWSIOT_TUNNEL_ENDPOINT": "nowhere:"})
                caller.caller = bad
                with pytest.raises(HubError) as caught:
                    await opened(TunnelOpener(), caller, request(service, "always"))
                assert caught.value.code == code

    @in_event_loop
    async def test_a_data_plane_that_was_reached_is_not_tried_again_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[object] = []

        async def probe(route: object) -> None:
            tried.append(route)

        monkeypatch.setattr("tunnelproxy.hub.opening.probe", probe)
        async with control(tmp_path, monkeypatch) as (_, caller):
            opener = TunnelOpener()
            for region in ("eu-central-1", "eu-central-1", "us-east-1"):
                account = KEY.account._replace(region=region)
                await opener.check(account, None, PLAN, caller=caller, own_ports=())
            assert len(tried) == 2

    @pytest.mark.parametrize(
        ("plan", "service", "code", "words"),
        [
            (ServicePlan((), {}, ()), None, "bad-input", "carries at least one service, and each once, not none"),
            (ServicePlan(("A", "A"), {}, ()), None, "bad-input", "each once, not A, A"),
            (ServicePlan(("-A",), {}, ()), None, "bad-input", "'-A' cannot be the name of a service"),
            (ServicePlan(("A",), {}, ()), "SSH1", "service-not-offered", "a tunnel with A does not carry SSH1"),
            (ServicePlan(("A",), {"B": 0}, ()), None, "service-not-offered", "a tunnel with A does not carry B"),
            (ServicePlan(("SSH1",), {"SSH1": 0}, ()), None, "bad-input", "SSH1 of the tunnel cannot have a port"),
        ],
    )
    def test_services_that_would_not_work_are_told(
        self, plan: ServicePlan, service: str | None, code: str, words: str
    ) -> None:
        @in_event_loop
        async def check() -> None:
            caller: Any = None
            with pytest.raises(HubError) as caught:
                await TunnelOpener().check(KEY.account, None, plan, caller=caller, service=service, own_ports=())
            assert caught.value.code == code
            assert words in caught.value.message

        check()


@pytest.mark.parametrize("name", ["", "-pump", "a b", "a" * 129, "pump\n", "ä"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(HubError, match="cannot be the name of a thing: use 1 to 128 letters"):
        check_name("thing", name)
    check_name("thing", "pump-7:a_B")
