# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors that clients of the control API see."""

from __future__ import annotations

import pytest

from tunnelproxy.service.errors import ApiError, limit_exceeded, not_found, validation_failed


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (validation_failed("why"), "ValidationException"),
        (not_found("why"), "ResourceNotFoundException"),
        (limit_exceeded("why"), "LimitExceededException"),
    ],
)
def test_a_rejected_request_has_a_kind_a_message_and_a_status(error: ApiError, kind: str) -> None:
    assert (error.kind, error.message, error.status, str(error)) == (kind, "why", 400, "why")
