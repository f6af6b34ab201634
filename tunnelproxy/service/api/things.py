# SPDX-License-Identifier: Apache-2.0
"""The operations on things: ``ListThings`` and ``DescribeThing`` of AWS IoT's registry.

Unlike the operations on tunnels, they are REST with JSON, and signed for another service (``sigv4.REGISTRY_NAME``).
Source: botocore's ``iot`` service model, "AWS IoT API Reference".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from botocore.model import ServiceModel

from ..errors import ApiError
from ..model import AccessKey, Identity, Thing
from ..state.store import Store
from .validation import validate

__all__ = ["MODEL", "ThingOperations", "read_request"]

_MAX_PAGE = 250

_NAME = {"type": "string", "min": 1, "max": 128, "pattern": "[a-zA-Z0-9:_-]+"}

# The input as in botocore's model. The whole model, with 400 operations, would take 6 MB and a tenth of a second.
MODEL = ServiceModel(
    {
        "metadata": {"protocol": "rest-json", "serviceId": "IoT"},
        "operations": {
            name: {"name": name, "http": {"method": "GET", "requestUri": uri}, "input": {"shape": name}}
            for name, uri in (("ListThings", "/things"), ("DescribeThing", "/things/{thingName}"))
        },
        "shapes": {
            "ListThings": {
                "type": "structure",
                "members": {
                    "nextToken": {"shape": "Token"},
                    "maxResults": {"shape": "MaxResults"},
                    "attributeName": {"shape": "AttributeName"},
                    "attributeValue": {"shape": "AttributeValue"},
                    "thingTypeName": {"shape": "Name"},
                    "usePrefixAttributeValue": {"shape": "Flag"},
                },
            },
            "DescribeThing": {
                "type": "structure",
                "required": ["thingName"],
                "members": {"thingName": {"shape": "Name"}},
            },
            "Name": _NAME,
            "Token": {"type": "string"},
            "Flag": {"type": "boolean"},
            "MaxResults": {"type": "integer", "min": 1, "max": _MAX_PAGE},
            "AttributeName": {"type": "string", "max": 128, "pattern": "[a-zA-Z0-9_.,@/:#-]+"},
            "AttributeValue": {"type": "string", "max": 800, "pattern": r"[a-zA-Z0-9_.,@/:#=\[\]-]*"},
        },
    },
    "iot",
)


def read_request(method: str, path: str, query: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The operation that a request names, and its validated input.

    Args:
        method: the HTTP method.
        path: the path, not decoded.
        query: the query parameters, decoded.

    Raises:
        ApiError: there is no such operation, or its input is not valid.
    """
    top, _, name = path.removeprefix("/").partition("/") if path.startswith("/") else ("", "", "")
    if method != "GET" or top != "things" or path == "/things/":
        raise ApiError(
            "UnknownOperationException",
            "Of AWS IoT's registry, this service supports ListThings and DescribeThing. It has no thing groups and no "
            "fleet index.",
            404,
        )
    operation = "DescribeThing" if name else "ListThings"
    shape = MODEL.operation_model(operation).input_shape
    assert shape is not None  # noqa: S101  the model above has it
    given = {"thingName": unquote(name)} if name else dict(query)
    members = shape.members
    params = {key: _typed(value, members[key].type_name) for key, value in given.items() if key in members}
    try:
        return operation, validate(params, shape)
    except ApiError as error:
        raise _invalid(error.message) from None


class ThingOperations:
    """Carries out operations on things.

    Args:
        store: the state.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._identity = store.identity()

    def call(self, operation: str, params: dict[str, Any], key: AccessKey) -> dict[str, Any]:
        """Carry out an operation; see ``tunnels.TunnelOperations.call``."""
        if operation == "DescribeThing":
            return self._describe_thing(params["thingName"])
        return self._list_things(params, key)

    def _describe_thing(self, name: str) -> dict[str, Any]:
        thing = self._store.find_thing(name)
        if thing is None:
            raise ApiError("ResourceNotFoundException", f"Thing {name} does not exist.", 404)
        return {"defaultClientId": name, **_document(thing, self._identity)}

    def _list_things(self, params: dict[str, Any], key: AccessKey) -> dict[str, Any]:
        limit = params.get("maxResults", _MAX_PAGE)
        found: list[Thing] = []
        for thing in self._store.things_after(_read_page(params.get("nextToken"))):
            if key.covers(thing.name) and _matches(thing, params):
                found.append(thing)
            if len(found) > limit:
                break
        page = found[:limit]
        answer: dict[str, Any] = {"things": [_document(thing, self._identity) for thing in page]}
        if len(found) > limit:
            answer["nextToken"] = _write_page(page[-1].name)
        return answer


def _document(thing: Thing, identity: Identity) -> dict[str, Any]:
    document: dict[str, Any] = {
        "thingName": thing.name,
        "thingArn": identity.thing_arn(thing.name),
        "attributes": thing.attributes,
        "version": thing.version,
    }
    return {**document, "thingTypeName": thing.thing_type} if thing.thing_type else document


def _matches(thing: Thing, params: dict[str, Any]) -> bool:
    if params.get("thingTypeName", thing.thing_type) != thing.thing_type:
        return False
    name, wanted = params.get("attributeName"), params.get("attributeValue")
    if name is None:
        return True
    value = thing.attributes.get(name)
    if value is None or wanted is None:
        return value is not None
    return value.startswith(wanted) if params.get("usePrefixAttributeValue") else value == wanted


def _typed(value: str, kind: str) -> object:
    """Convert a query parameter to its type; text that does not match the type is left for the validation to reject."""
    if kind == "integer" and value.isdecimal():
        return int(value[:9])
    if kind == "boolean":
        return {"true": True, "false": False}.get(value, value)
    return value


def _write_page(name: str) -> str:
    return base64.urlsafe_b64encode(f"after:{name}".encode()).decode()


def _read_page(token: str | None) -> str:
    if token is None:
        return ""
    try:
        word, _, name = base64.urlsafe_b64decode(token).decode().partition(":")
    except (binascii.Error, ValueError):
        word = name = ""
    if word != "after":
        raise _invalid("The nextToken was not returned by ListThings.")
    return name


def _invalid(message: str) -> ApiError:
    return ApiError("InvalidRequestException", message)
