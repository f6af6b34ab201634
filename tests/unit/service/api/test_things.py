# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry's two operations on a real store, and the requests that ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from botocore import __version__
from botocore.loaders import Loader
from botocore.model import ServiceModel

from tunnelproxy.service.api.things import MODEL, ThingOperations, read_request
from tunnelproxy.service.errors import ApiError
from tunnelproxy.service.model import AccessKey, new_key_pair
from tunnelproxy.service.state.store import Store

OWNER = AccessKey("owner", new_key_pair())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "service.db")
    made.put_thing("pump-1", "pump", {"site": "north", "line": "3"})
    made.put_thing("pump-2", "pump", {"site": "northwest"})
    made.put_thing("gate", None, {"site": "south"})
    return made


def names(store: Store, key: AccessKey = OWNER, **params: Any) -> list[str]:
    """The names of all things that are listed, page by page."""
    found: list[str] = []
    while True:
        page = ThingOperations(store).call("ListThings", params, key)
        found += [thing["thingName"] for thing in page["things"]]
        if "nextToken" not in page:
            return found
        params["nextToken"] = page["nextToken"]


@pytest.mark.parametrize("page", [1, 2, 3, 250])
def test_each_thing_is_listed_once_whatever_the_size_of_a_page(store: Store, page: int) -> None:
    assert names(store, maxResults=page) == ["gate", "pump-1", "pump-2"]


@pytest.mark.parametrize(
    ("params", "listed"),
    [
        ({"thingTypeName": "pump"}, ["pump-1", "pump-2"]),
        ({"attributeName": "site", "attributeValue": "north"}, ["pump-1"]),
        ({"attributeName": "site", "attributeValue": "nor", "usePrefixAttributeValue": True}, ["pump-1", "pump-2"]),
        ({"attributeName": "line"}, ["pump-1"]),
        ({"attributeName": "site", "attributeValue": "south", "thingTypeName": "pump"}, []),
    ],
)
def test_filters(store: Store, params: dict[str, Any], listed: list[str]) -> None:
    assert names(store, **params) == listed
    assert names(store, **params, maxResults=1) == listed


def test_a_key_for_some_things_is_shown_no_others(store: Store) -> None:
    assert names(store, AccessKey("some", new_key_pair(), things=("pump-*",)), maxResults=1) == ["pump-1", "pump-2"]


def test_a_description_keeps_what_is_not_changed(store: Store) -> None:
    store.put_thing("pump-1", attributes={})
    store.put_thing("pump-1", "big-pump")
    described = ThingOperations(store).call("DescribeThing", {"thingName": "pump-1"}, OWNER)
    assert described == {
        "defaultClientId": "pump-1",
        "thingName": "pump-1",
        "thingArn": store.identity().thing_arn("pump-1"),
        "thingTypeName": "big-pump",
        "attributes": {},
        "version": 3,
    }


def test_a_thing_that_is_not_there(store: Store) -> None:
    assert store.remove_thing("gate")
    assert not store.remove_thing("gate")
    with pytest.raises(ApiError) as caught:
        ThingOperations(store).call("DescribeThing", {"thingName": "gate"}, OWNER)
    assert (caught.value.kind, caught.value.status) == ("ResourceNotFoundException", 404)


@pytest.mark.parametrize("token", ["=", "abc", "YmVmb3JlOjE="])
def test_a_next_token_made_up_is_refused(store: Store, token: str) -> None:
    with pytest.raises(ApiError, match="was not returned by ListThings"):
        names(store, nextToken=token)


def test_requests_are_read() -> None:
    query = {"maxResults": "9", "usePrefixAttributeValue": "true", "attributeName": "a", "unknown": "x"}
    typed = {"maxResults": 9, "usePrefixAttributeValue": True, "attributeName": "a"}
    assert read_request("GET", "/things", query) == ("ListThings", typed)
    assert read_request("GET", "/things/a%3A1", {}) == ("DescribeThing", {"thingName": "a:1"})


@pytest.mark.parametrize(
    ("path", "query", "said"),
    [
        ("/things", {"maxResults": "251"}, "less than or equal to 250"),
        ("/things", {"maxResults": "9" * 50}, "less than or equal to 250"),
        ("/things", {"maxResults": "x"}, "must be of type integer"),
        ("/things", {"usePrefixAttributeValue": "yes"}, "must be of type boolean"),
        ("/things", {"attributeName": "a b"}, "regular expression pattern"),
        ("/things/a%2Fb", {}, "regular expression pattern"),
        ("/things/a/b", {}, "regular expression pattern"),
    ],
)
def test_input_that_violates_the_model_is_rejected(path: str, query: dict[str, str], said: str) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        read_request("GET", path, query)
    assert (caught.value.kind, caught.value.status) == ("InvalidRequestException", 400)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/things/x"), ("GET", "/"), ("GET", "/things/"), ("GET", "/thing-groups/a/things")]
)
def test_other_calls_are_unknown(method: str, path: str) -> None:
    with pytest.raises(ApiError, match="no thing groups and no fleet index") as caught:
        read_request(method, path, {})
    assert (caught.value.kind, caught.value.status) == ("UnknownOperationException", 404)


@pytest.mark.skipif(tuple(map(int, __version__.split(".")[:2])) < (1, 40), reason="an older model")
def test_the_model_is_botocores() -> None:
    theirs = ServiceModel(Loader().load_service_model("iot", "service-2"), "iot")
    for name in MODEL.operation_names:
        ours, original = MODEL.operation_model(name), theirs.operation_model(name)
        assert ours.http == original.http
        assert ours.input_shape.required_members == original.input_shape.required_members
        members = original.input_shape.members
        for member, shape in ours.input_shape.members.items():
            assert (shape.type_name, shape.metadata) == (members[member].type_name, members[member].metadata)
        assert ours.input_shape.members.keys() == members.keys()
