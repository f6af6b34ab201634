# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

from tunnelproxy.hub.control_answers import FoundTunnel


def test_a_tunnel_is_what_it_was_after_json_and_hides_its_token() -> None:
    tunnel = FoundTunnel("id", "arn", "eu-central-1", ("SSH1",), 1.5, "the-token", taken_from="you")
    assert FoundTunnel.from_json(json.loads(json.dumps(vars(tunnel)))) == tunnel
    assert "the-token" not in repr(tunnel)
