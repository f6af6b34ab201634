# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of iotops.tunnel.tunnel and tunnel_info, which their action plugins check.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

AWS_OPTIONS = {
    "profile": {"type": "str"},
    "region": {"type": "str"},
    "access_key": {"type": "str", "no_log": True},
    "secret_key": {"type": "str", "no_log": True},
    "session_token": {"type": "str", "no_log": True},
    "endpoint_url": {"type": "str"},
    "aws_ca_bundle": {"type": "path"},
    "validate_certs": {"type": "bool"},
    "tunnel_endpoint": {"type": "str"},
    "tunnel_capath": {"type": "path"},
}
"""Options of all modules that call the control API. They have no defaults, so that the host's variables can apply."""

TUNNEL_OPTIONS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "thing_name": {"type": "str"},
    "tunnel_id": {"type": "str"},
    "services": {"type": "list", "elements": "str", "default": ["SSH1", "HTTP1"]},
    "lifetime": {"type": "int", "default": 720},
    "description": {"type": "str"},
    "tags": {"type": "dict"},
    "rotate": {"type": "str", "choices": ["source", "destination", "all"]},
    "wait_for_destination": {"type": "int", "default": 0},
    "ports": {"type": "list", "elements": "str", "default": []},
    "return_tokens": {"type": "bool", "default": False},
    "owner": {"type": "str"},
    "take_over": {"type": "bool", "default": False},
    "unregistered": {"type": "bool"},
    **AWS_OPTIONS,
}

INFO_OPTIONS = {
    "thing_name": {"type": "str"},
    "all_things": {"type": "bool", "default": False},
    "tunnel_id": {"type": "str"},
    "status": {"type": "str", "choices": ["open", "closed", "any"], "default": "open"},
    "tags": {"type": "dict", "default": {}},
    **AWS_OPTIONS,
}

REQUIRED_TOGETHER = [("access_key", "secret_key")]
