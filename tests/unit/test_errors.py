# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors are sentences; those that programs read have a cause, too."""

from __future__ import annotations

import pytest

from tunnelproxy.errors import ConfigurationError, TunnelRefused, refuse


def test_a_refusal_has_its_sentence_and_its_cause() -> None:
    refused = TunnelRefused("the token was used before", cause="token-used", status=403, channel_id="c-1")
    assert str(refused) == "the token was used before"
    assert (refused.cause, refused.status, refused.channel_id) == ("token-used", 403, "c-1")


def test_refuse_raises_the_problem_whatever_would_be_done_instead() -> None:
    with pytest.raises(ConfigurationError, match=r"^the file is empty$"):
        refuse("the file is empty", "the defaults are used")
