# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors that clients of the control API see."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunnelproxy.service.errors import ApiError, limit_exceeded, not_found, validation_failed


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (validation_failed, "ValidationException"),
        (not_found, "ResourceNotFoundException"),
        (limit_exceeded, "LimitExceededException"),
    ],
)
def test_a_rejected_request_has_a_kind_a_message_and_a_status(make: Callable[[str], ApiError], kind: str) -> None:
    error = make("why")
    assert (error.kind, error.message, error.status, str(error)) == (kind, "why", 400, "why")
