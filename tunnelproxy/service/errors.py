# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in the service, said for the two who may read it: its operator, and a client of its control API."""

from __future__ import annotations

__all__ = ["ApiError", "ServiceError", "StoreError", "limit_exceeded", "not_found", "validation_failed"]


class ServiceError(Exception):
    """The service cannot do what its operator asked; the text says why and what to do next."""


class StoreError(ServiceError):
    """The service's state could not be read or written, and is what it was before. The text has SQLite's words."""


class ApiError(Exception):
    """A control API request is refused.

    Args:
        kind: the error's name on the wire, such as ``ResourceNotFoundException``.
        message: a sentence for the caller.
        status: the HTTP status.
    """

    def __init__(self, kind: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status


def validation_failed(message: str) -> ApiError:
    """An input that the operation's model does not allow."""
    return ApiError("ValidationException", message)


def not_found(message: str) -> ApiError:
    """A tunnel that does not exist. The model gives it no HTTP status, so it has that of JSON 1.1's client errors."""
    return ApiError("ResourceNotFoundException", message)


def limit_exceeded(message: str) -> ApiError:
    """A request for more than a tunnel may have."""
    return ApiError("LimitExceededException", message)
