# SPDX-License-Identifier: Apache-2.0
"""The control API over HTTPS: signed requests, as JSON 1.1 for tunnels, and as REST with JSON for things.

Source: "AWS JSON 1.1 protocol" and "AWS REST JSON 1 protocol", Smithy specification.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from botocore.loaders import Loader
from botocore.model import OperationNotFoundError, ServiceModel

from ..errors import ApiError, StoreError
from ..events import ControlCall, EventHandler
from ..logs.unexpected_errors import UnexpectedErrors
from ..model import AccessKey
from .authorization import Authorizer
from .replay_guard import ReplayGuard
from .sigv4 import REGISTRY_NAME, SignedRequest, claimed_key_id, verify
from .things import ThingOperations, read_request
from .tunnels import TunnelOperations
from .validation import validate

__all__ = ["BODY_DEADLINE", "MAX_BODY", "ControlApi", "malformed_answer", "service_model"]

MAX_BODY = 64 * 1024
"""Bytes of a request's body. The largest that the model allows is far smaller."""

BODY_DEADLINE = 10.0
"""Seconds within which a request's body must arrive."""

_CONTENT_TYPE = "application/x-amz-json-1.1"
_REGISTRY_CONTENT_TYPE = "application/json"
_INTERNAL_FAILURE = "InternalFailureException"
_REQUEST_ID = "x-amzn-RequestId"
_ACCOUNT = "x-iotops-account"

log = logging.getLogger(__name__)


def service_model() -> ServiceModel:
    """botocore's model of the service, the reference for its operations, their input and their output."""
    return ServiceModel(Loader().load_service_model("iotsecuretunneling", "service-2"), "iotsecuretunneling")


@dataclass(eq=False)
class _Call:
    """What is known so far about a request."""

    request_id: str
    address: str | None
    key: AccessKey | None = None
    access_key_id: str | None = None
    operation: str | None = None
    thing: str | None = None
    tunnel: str | None = None
    about_things: bool = False

    def ended(self, outcome: str, status: int, seconds: float) -> ControlCall:
        name = None if self.key is None else self.key.name
        return ControlCall(
            self.request_id,
            self.address,
            name,
            self.access_key_id,
            self.operation,
            self.thing,
            self.tunnel,
            outcome,
            status,
            seconds,
        )


class ControlApi:
    """Answers HTTP requests.

    Args:
        tunnels: carries out the operations on tunnels.
        things: carries out the operations on things.
        authorizer: decides what each access key may do.
        find_key: returns the access key with an ID, or None.
        region: the region that signatures must name.
        account_id: the account ID in the service's ARNs.
        clock: returns seconds since the epoch.
        replay_guard: rejects reused signatures.
        notify: called with each request that was answered.
        failures: logs unexpected errors.
        authenticated: called with the connection of each request that was signed with a known key.
    """

    def __init__(
        self,
        tunnels: TunnelOperations,
        things: ThingOperations,
        authorizer: Authorizer,
        *,
        find_key: Callable[[str], AccessKey | None],
        region: str,
        account_id: str,
        clock: Callable[[], float],
        replay_guard: ReplayGuard,
        notify: EventHandler,
        failures: UnexpectedErrors | None = None,
        authenticated: Callable[[object], None] = lambda connection: None,
    ) -> None:
        self._tunnels = tunnels
        self._things = things
        self._authorizer = authorizer
        self._find_key = find_key
        self._region = region
        self._account_id = account_id
        self._clock = clock
        self._notify = notify
        self._failures = failures or UnexpectedErrors()
        self._authenticated = authenticated
        self._replay_guard = replay_guard
        self._model = service_model()
        self._running: set[_Call] = set()
        self._one_ended = asyncio.Event()

    def application(self) -> web.Application:
        """The aiohttp application. All requests go to :meth:`handle`, not to a router, so that errors look alike."""

        @web.middleware
        async def answer(request: web.Request, handler: object) -> web.Response:
            return await self.handle(request)

        return web.Application(client_max_size=MAX_BODY, middlewares=[cast(Any, answer)])

    async def handle(self, request: web.Request) -> web.Response:
        """Answer a request."""
        call = _Call(str(uuid.uuid4()), request.remote)
        started = time.perf_counter()
        self._running.add(call)
        try:
            content, outcome, status = await self._answer(request, call)
        finally:
            self._running.discard(call)
            self._one_ended.set()
        self._notify(call.ended(outcome, status, time.perf_counter() - started))
        content_type = _REGISTRY_CONTENT_TYPE if call.about_things else _CONTENT_TYPE
        answer = _response(content, status, call.request_id, content_type)
        if status == HTTPStatus.OK:
            # Only for clients with a known key. AWS's clients get it from AWS's Security Token Service.
            answer.headers[_ACCOUNT] = self._account_id
        return answer

    async def finish(self, seconds: float) -> None:
        """Wait for requests in progress, up to a number of seconds.

        aiohttp also waits for them when it shuts down, but by then it no longer reads their bodies.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._none_running(), seconds)

    async def _none_running(self) -> None:
        while self._running:
            self._one_ended.clear()
            await self._one_ended.wait()

    async def _answer(self, request: web.Request, call: _Call) -> tuple[dict[str, Any], str, int]:
        """The content, outcome and status of the answer."""
        try:
            body = await _read_body(request)
            self._authenticate(request, body, call)
            answer = self._carry_out(request, body, call)
        except ApiError as error:
            return _error_content(error.kind, error.message), error.kind, error.status
        except StoreError:
            # The log contains the reason, once.
            kind = "ServiceUnavailableException"
            message = (
                "The service cannot store its state at the moment, and has changed nothing; its log gives the reason."
            )
            return _error_content(kind, message), kind, HTTPStatus.SERVICE_UNAVAILABLE
        except Exception as error:
            self._failures.report(f"{call.operation or 'a request'} has failed (request {call.request_id})", error)
            message = f"The service failed; its log has the details of request {call.request_id}."
            return _error_content(_INTERNAL_FAILURE, message), _INTERNAL_FAILURE, HTTPStatus.INTERNAL_SERVER_ERROR
        log.debug("%s answered (request %s)", call.operation, call.request_id)
        return answer, "ok", 200

    def _authenticate(self, request: web.Request, body: bytes, call: _Call) -> None:
        headers = {name.lower(): ",".join(request.headers.getall(name)) for name in request.headers}
        call.access_key_id = claimed_key_id(headers)
        verified = verify(
            SignedRequest(request.method, request.raw_path, headers, body),
            find_key=self._find_key,
            region=self._region,
            now=dt.datetime.fromtimestamp(self._clock(), dt.timezone.utc),
        )
        call.key = verified.key
        call.about_things = verified.service == REGISTRY_NAME
        self._replay_guard.check(verified.signature)
        self._authenticated(request.protocol)

    def _carry_out(self, request: web.Request, body: bytes, call: _Call) -> dict[str, Any]:
        if call.about_things:
            call.operation, params = read_request(request.method, request.rel_url.raw_path, request.query)
        else:
            call.operation = self._operation_name(request)
            params = self._params(call.operation, body)
        call.tunnel, call.thing = self._authorizer.subject(params)
        assert call.key is not None  # noqa: S101  _authenticate has set it
        self._authorizer.check(call.key, call.operation, params)
        operations = self._things if call.about_things else self._tunnels
        answer = operations.call(call.operation, params, call.key)
        call.tunnel = answer.get("tunnelId", call.tunnel)
        return answer

    def _operation_name(self, request: web.Request) -> str:
        prefix, _, name = request.headers.get("X-Amz-Target", "").partition(".")
        if request.method != "POST" or request.path != "/" or prefix != self._model.metadata["targetPrefix"]:
            raise _unknown_operation()
        try:
            return self._model.operation_model(name).name
        except OperationNotFoundError:
            raise _unknown_operation() from None

    def _params(self, operation: str, body: bytes) -> dict[str, Any]:
        try:
            params = json.loads(body) if body else {}
        except (ValueError, RecursionError):
            raise ApiError("SerializationException", "The request's body is not JSON.") from None
        shape = self._model.operation_model(operation).input_shape
        return {} if shape is None else validate(params, shape)


async def _read_body(request: web.Request) -> bytes:
    try:
        return await asyncio.wait_for(request.read(), BODY_DEADLINE)
    except asyncio.TimeoutError:
        raise ApiError(
            "RequestTimeoutException", f"The request's body did not arrive within {BODY_DEADLINE:.0f} seconds.", 408
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(
            "RequestEntityTooLargeException", f"The request's body is larger than {MAX_BODY} bytes.", 413
        ) from None
    except Exception as error:  # none of our code runs here, and aiohttp raises many exceptions for a malformed body
        raise ApiError("InvalidRequestException", "The request's body is incomplete or malformed.") from error


def _unknown_operation() -> ApiError:
    return ApiError("UnknownOperationException", "X-Amz-Target does not name an operation of IoT Secure Tunneling.")


def malformed_answer(message: str, status: int) -> web.Response:
    """The answer to data that cannot be parsed as an HTTP request."""
    kind = "InvalidRequestException" if status < HTTPStatus.INTERNAL_SERVER_ERROR else _INTERNAL_FAILURE
    return _response(_error_content(kind, message), status, str(uuid.uuid4()), _CONTENT_TYPE)


def _error_content(kind: str, message: str) -> dict[str, Any]:
    return {"__type": kind, "message": message}


def _response(content: dict[str, Any], status: int, request_id: str, content_type: str) -> web.Response:
    headers = {_REQUEST_ID: request_id}
    if status != 200:
        # Clients other than botocore read the error's name here.
        headers["x-amzn-ErrorType"] = str(content["__type"])
    return web.Response(body=json.dumps(content).encode(), status=status, headers=headers, content_type=content_type)
