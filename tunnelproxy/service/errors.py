# SPDX-License-Identifier: Apache-2.0
"""The service's errors, for its operator and for clients of its control API."""

from __future__ import annotations

__all__ = ["ApiError", "ServiceError", "StoreError", "limit_exceeded", "not_found", "validation_failed"]


class ServiceError(Exception):
    """The service cannot do what its operator asked for; the text says why and what to do."""


class StoreError(ServiceError):
    """The service's state could not be read or written, and is unchanged. The text includes SQLite's message."""


class ApiError(Exception):
    """A request to the control API is rejected.

    Args:
        kind: the error's name on the wire, such as ``ResourceNotFoundException``.
        message: a sentence for the client.
        status: the HTTP status.
    """

    def __init__(self, kind: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status


def validation_failed(message: str) -> ApiError:
    """The input violates the operation's model."""
    return ApiError("ValidationException", message)


def not_found(message: str) -> ApiError:
    """The tunnel does not exist. The model defines no HTTP status, so this is the one of JSON 1.1's client errors."""
    return ApiError("ResourceNotFoundException", message)


def limit_exceeded(message: str) -> ApiError:
    """The request exceeds a quota."""
    return ApiError("LimitExceededException", message)
