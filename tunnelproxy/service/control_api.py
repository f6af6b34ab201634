# SPDX-License-Identifier: Apache-2.0
"""The control API over HTTPS: JSON 1.1 in and out, every request signed.

Source: "AWS JSON 1.1 protocol", Smithy specification.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web
from botocore.loaders import Loader
from botocore.model import OperationNotFoundError, ServiceModel

from .errors import ApiError
from .operations import Operations
from .sigv4 import SignedRequest, verify
from .validation import validate

__all__ = ["MAX_BODY", "ControlApi", "service_model"]

MAX_BODY = 64 * 1024
"""Most bytes of a request's body; the largest that the model allows is far smaller."""

_CONTENT_TYPE = "application/x-amz-json-1.1"
_REQUEST_ID = "x-amzn-RequestId"

_log = logging.getLogger(__name__)


def service_model() -> ServiceModel:
    """botocore's model of the service: the reference for operations, their input and their output."""
    return ServiceModel(Loader().load_service_model("iotsecuretunneling", "service-2"), "iotsecuretunneling")


class ControlApi:
    """Answers HTTP requests with operations.

    Args:
        operations: what carries them out.
        find_secret: gives the secret access key for an access key ID, or None.
        region: the region that signatures must name.
        clock: gives seconds since the epoch.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        find_secret: Callable[[str], str | None],
        region: str,
        clock: Callable[[], float],
    ) -> None:
        self._operations = operations
        self._find_secret = find_secret
        self._region = region
        self._clock = clock
        self._model = service_model()

    def application(self) -> web.Application:
        """The aiohttp application. All paths and methods lead to :meth:`handle`, so that errors look alike."""
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_route("*", "/{path:.*}", self.handle)
        return application

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request."""
        request_id = str(uuid.uuid4())
        operation = "-"
        try:
            body = await _read_body(request)
            self._authenticate(request, body)
            operation = self._operation_name(request)
            answer = self._operations.call(operation, self._params(operation, body))
        except ApiError as error:
            _log.info("%s refused: %s (request %s)", operation, error.kind, request_id)
            return _response({"__type": error.kind, "message": error.message}, error.status, request_id)
        except Exception:
            _log.exception("%s failed (request %s)", operation, request_id)
            message = f"The service failed; its log has more under request {request_id}."
            return _response({"__type": "InternalFailureException", "message": message}, 500, request_id)
        _log.debug("%s answered (request %s)", operation, request_id)
        return _response(answer, 200, request_id)

    def _authenticate(self, request: web.Request, body: bytes) -> None:
        headers = {name.lower(): ",".join(request.headers.getall(name)) for name in request.headers}
        verify(
            SignedRequest(request.method, request.raw_path, headers, body),
            find_secret=self._find_secret,
            region=self._region,
            now=dt.datetime.fromtimestamp(self._clock(), dt.timezone.utc),
        )

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
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(
            "RequestEntityTooLargeException", f"The request's body is larger than {MAX_BODY} bytes.", 413
        ) from None


def _unknown_operation() -> ApiError:
    return ApiError("UnknownOperationException", "X-Amz-Target names no operation of IoT Secure Tunneling.")


def _response(content: dict[str, Any], status: int, request_id: str) -> web.Response:
    headers = {_REQUEST_ID: request_id}
    if status != 200:
        # Where clients other than botocore look for the error's name.
        headers["x-amzn-ErrorType"] = str(content["__type"])
    return web.Response(body=json.dumps(content).encode(), status=status, headers=headers, content_type=_CONTENT_TYPE)
