# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API's calls, made by botocore to a tunneling service in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.event_loop import in_event_loop
from peers.hub_in_process import call_hub
from tunnelproxy.hub import aws_api
from tunnelproxy.hub.aws_api import AwsApi
from tunnelproxy.hub.control_answers import EndStates
from tunnelproxy.hub.location import HubError
from tunnelproxy.service.client_environment import client_environment
from tunnelproxy.service.server import ServiceSettings, serve
from tunnelproxy.service.state.directory import StateDirectory
from tunnelproxy.service.state.store import Store


@asynccontextmanager
async def service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsApi]:
    """A service with the thing ``pump``, and the calls of somebody who has its keys."""
    ready = asyncio.Event()
    state = StateDirectory(folder / "state")
    state.create()
    store = Store(state.database)
    store.put_thing("pump")
    store.close()
    settings = ServiceSettings(state.path, "127.0.0.1", 0, 0)
    running = asyncio.get_running_loop().create_task(serve(settings, lambda line: ready.set()))
    await asyncio.wait_for(ready.wait(), 20)
    for name, value in {**client_environment(state), "HOME": str(folder)}.items():
        monkeypatch.setenv(name, value)
    try:
        yield AwsApi()
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


async def take(api: AwsApi, **settings: Any) -> Any:
    wanted = {"service": "SSH1", "life": 60.0, "owner": "me", "take_over": False, "held": [], **settings}
    return await call_hub(api.take, "pump", **wanted)


@in_event_loop
async def test_the_account_is_the_service_s_and_known_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, monkeypatch) as api:
        found = await call_hub(api.identify, "pump", {})
        assert found.key.startswith("aws:")
        assert found.key.partition("@")[2].startswith("https://127.0.0.1:")
        assert found.lasts
        again = await call_hub(api.identify, "pump", {found.known_by: "aws:1:x"})
        assert again.key == "aws:1:x"


@in_event_loop
async def test_a_tunnel_is_opened_found_taken_over_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, monkeypatch) as api:
        assert await take(api) is None
        opened = await call_hub(api.open, "pump", ["SSH1", "HTTP1"], "me")
        assert opened.services == ("SSH1", "HTTP1")
        assert opened.arn.endswith(opened.tunnel_id)
        for miss in ({"service": "VNC"}, {"life": 1e6}, {"owner": "you"}, {"held": [opened.tunnel_id]}):
            assert await take(api, **miss) is None
        mine = await take(api)
        assert (mine.tunnel_id, mine.taken_from) == (opened.tunnel_id, "")
        assert mine.source_token != opened.source_token
        assert (await take(api, owner="you", take_over=True)).taken_from == "me"
        states = await call_hub(api.end_states, opened.tunnel_id)
        assert (states.tunnel, states.destination, states.owner) == ("OPEN", "disconnected", "you")
        assert await call_hub(api.end_states, "gone") == EndStates(tunnel="GONE")


@in_event_loop
async def test_an_owner_who_does_not_get_the_token_does_not_keep_the_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, monkeypatch) as api:
        opened = await call_hub(api.open, "pump", ["SSH1"], "me")

        class Broken:
            def __init__(self, client: Any) -> None:
                self._client = client

            def __getattr__(self, name: str) -> Any:
                return getattr(self._client, name)

            def rotate_tunnel_access_token(self, **_: Any) -> None:
                raise HubError("it is throttled", code="throttled")

        client = api._client
        monkeypatch.setattr(api, "_client", lambda name: Broken(client(name)))
        with pytest.raises(HubError, match="throttled"):
            await take(api, owner="you", take_over=True)
        assert (await call_hub(api.end_states, opened.tunnel_id)).owner == "me"


@in_event_loop
async def test_a_tunnel_whose_opening_had_no_answer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(tmp_path, monkeypatch) as api:
        once = api._open_once

        def lose_the_answer(request: dict[str, Any]) -> dict[str, Any]:
            once(request)
            raise HubError("no answer", code="control-api")

        monkeypatch.setattr(api, "_open_once", lose_the_answer)
        found = await call_hub(api.open, "pump", ["SSH1"], "me")
        assert (await call_hub(api.end_states, found.tunnel_id)).owner == "me"


@in_event_loop
async def test_a_thing_that_is_not_registered_is_told_with_those_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, monkeypatch) as api:
        await call_hub(api.check_registered, "pump")
        with pytest.raises(HubError, match=r"the registry has no thing pmup: did you mean pump\? Enrol it") as caught:
            await call_hub(api.check_registered, "pmup")
        assert caught.value.code == "unknown-thing"


@in_event_loop
async def test_calls_have_their_answers_and_their_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(tmp_path, monkeypatch) as api:
        answer = await call_hub(api.call, "iotsecuretunneling", "list_tunnels", {}, "list tunnels")
        assert answer == {"tunnelSummaries": []}
        opened = await call_hub(
            api.call,
            "iotsecuretunneling",
            "open_tunnel",
            {"destinationConfig": {"thingName": "pump", "services": ["SSH1"]}},
            "open a tunnel",
        )
        assert opened["tunnelId"]
        with pytest.raises(HubError) as caught:
            await call_hub(api.call, "iot", "describe_thing", {"thingName": "none"}, "describe a thing")
        assert caught.value.code == "not-found"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(HubError) as caught:
            await call_hub(AwsApi().call, "iot", "list_things", {}, "list things")
        assert caught.value.code == "wrong-credentials"


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "", **KEYS}, "wrong-region"),
        ({"AWS_EC2_METADATA_DISABLED": "true", **dict.fromkeys(KEYS, "")}, "wrong-credentials"),
    ],
)
def test_what_a_call_lacks_is_told(
    variables: dict[str, str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOME": str(tmp_path), "AWS_REGION": "eu-central-1", **variables}.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(HubError) as caught:
        AwsApi().identify("pump", {})
    assert caught.value.code == code


def test_a_url_of_aws_s_is_no_endpoint_of_one_s_own() -> None:
    class Client:
        class meta:  # noqa: N801
            endpoint_url = "https://api.tunneling.iot.eu-central-1.amazonaws.com"

    assert aws_api._endpoint_of(Client) == ""
    Client.meta.endpoint_url = "https://Service.Example:8443/path"
    assert aws_api._endpoint_of(Client) == "https://service.example:8443"
