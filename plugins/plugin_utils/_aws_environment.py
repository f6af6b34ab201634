# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The account of a host: the options that select it, merged into the environment that the C(aws) command would use.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.iotops.tunnel.tunnelproxy.hub.client import Caller, current_directory
from ansible_collections.iotops.tunnel.tunnelproxy.hub.tags import OWNER_VARIABLE, default_owner, valid_owner

UNREGISTERED_VARIABLE = "IOTOPS_TUNNEL_UNREGISTERED"

# The environment variables that each option replaces.
_VARIABLES = {
    "profile": ("AWS_PROFILE",),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "access_key": ("AWS_ACCESS_KEY_ID",),
    "secret_key": ("AWS_SECRET_ACCESS_KEY",),
    "session_token": ("AWS_SESSION_TOKEN",),
    "endpoint_url": ("AWS_ENDPOINT_URL_IOTSECURETUNNELING", "AWS_ENDPOINT_URL_IOT"),
    "aws_ca_bundle": ("AWS_CA_BUNDLE",),
    "tunnel_endpoint": ("AWSIOT_TUNNEL_ENDPOINT",),
    "tunnel_capath": ("AWSIOT_TUNNEL_CAPATH",),
}
# Any of these replaces all others, so that credentials of two accounts are never mixed.
_CREDENTIALS = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
_CONTROL_API = ("AWS_ENDPOINT_URL_IOTSECURETUNNELING", "AWS_ENDPOINT_URL")
# Settings that replace those of weaker sources. The data plane of one service is useless for tunnels of another.
_REPLACES = (
    (_CREDENTIALS, _CREDENTIALS),
    (_CONTROL_API, (*_CONTROL_API, "AWS_ENDPOINT_URL_IOT", "AWSIOT_TUNNEL_ENDPOINT")),
)

# The variables of a task's environment that select the account. The others are for programs on the device, and may come
# from its facts. They must not become the environment of programs on the controller, such as credential_process.
_TAKEN_PREFIX = "AWS_"
_TAKEN_FROM_TASKS = {"AWSIOT_TUNNEL_ENDPOINT", "AWSIOT_TUNNEL_CAPATH", OWNER_VARIABLE, UNREGISTERED_VARIABLE}

AWS_OPTIONS = (*_VARIABLES, "validate_certs")
"""The options, with the same names in modules and plugins, and with the prefix C(iotops_tunnel_) as variables."""

REQUIRED_TOGETHER = ("access_key", "secret_key")


def caller_for(
    options: Mapping[str, Any],
    *,
    variables: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    task_environment: Mapping[str, str] | None = None,
) -> Caller:
    """Return the caller of the hub: this process, with the account that the options select.

    In ascending precedence: C(defaults), from ansible.cfg; the environment; the variables of C(task_environment) that
    select the account, but no others; C(variables), of the host; C(options), of the task. A plugin whose options come
    from variables passes those as C(options). Raise ValueError with a message for the user.
    """
    configured = _as_variables(defaults or {})
    merged: dict[str, str] = {}
    for source in (
        configured,
        {name: value for name, value in os.environ.items() if value or name not in configured},
        _about_the_account(task_environment or {}),
        _as_variables(variables or {}),
        _as_variables(options),
    ):
        for stronger, weaker in _REPLACES:
            if any(source.get(name) for name in stronger):
                for name in weaker:
                    merged.pop(name, None)
        merged.update({name: str(value) for name, value in source.items()})
    verify = [layer.get("validate_certs") for layer in (options, variables or {}, defaults or {})]
    return Caller(merged, current_directory(), verify=bool(next((each for each in verify if each is not None), True)))


class Opener(NamedTuple):
    """The owner of new tunnels, and whether they may lead to things that are not in the registry."""

    owner: str
    unregistered: bool


def opener_for(caller: Caller, *layers: Mapping[str, Any]) -> Opener:
    """Return owner and C(unregistered) from layers of options, in descending precedence.

    The caller's environment, which includes the task's, comes just before the last layer, which is ansible.cfg. For
    plugins, that layer also has Ansible's own environment.
    """
    inherited = {"owner": caller.environment.get(OWNER_VARIABLE)}
    inherited["unregistered"] = caller.environment.get(UNREGISTERED_VARIABLE) or None
    ordered = (*layers[:-1], inherited, layers[-1])
    owner = next(filter(None, (layer.get("owner") for layer in ordered)), "")
    unregistered = [layer.get("unregistered") for layer in ordered]
    return Opener(
        valid_owner(str(owner)) or default_owner(),
        boolean(next((each for each in unregistered if each is not None), False), strict=False),
    )


def _about_the_account(environment: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(value)
        for name, value in environment.items()
        if value is not None and (name.startswith(_TAKEN_PREFIX) or name in _TAKEN_FROM_TASKS)
    }


def _as_variables(options: Mapping[str, Any]) -> dict[str, str]:
    given = {name: str(options[name]) for name in _VARIABLES if options.get(name)}
    if len(given.keys() & set(REQUIRED_TOGETHER)) == 1:
        raise ValueError("access_key and secret_key belong together: set both, or neither.")
    return {variable: value for name, value in given.items() for variable in _VARIABLES[name]}
