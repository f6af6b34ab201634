# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the control API is reached, as environment variables: the form that boto3, the module and the hub all take."""

from __future__ import annotations

import os

_NAMES = {
    "profile": "AWS_PROFILE",
    "region": "AWS_REGION",
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "aws_ca_bundle": "AWS_CA_BUNDLE",
}
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


TUNNELING_ENDPOINT = "AWS_ENDPOINT_URL_IOTSECURETUNNELING"
REGISTRY_ENDPOINT = "AWS_ENDPOINT_URL_IOT"


def aws_environment(
    options: dict, task_environment: dict[str, str], endpoint: str = TUNNELING_ENDPOINT
) -> dict[str, str]:
    """Merge, from weak to strong: the controller's environment, the task's C(environment), the task's options.

    Credentials are never mixed: keys or a profile in a stronger place replace whatever a weaker one has. C(endpoint) is
    the variable that C(endpoint_url) stands for.
    """
    merged: dict[str, str] = {}
    names = {**_NAMES, "endpoint_url": endpoint}
    from_options = {name: str(options[option]) for option, name in names.items() if options.get(option)}
    for source in (os.environ, task_environment, from_options):
        if "AWS_PROFILE" in source or "AWS_ACCESS_KEY_ID" in source:
            for name in ("AWS_PROFILE", *_KEYS):
                merged.pop(name, None)
        merged.update({name: str(value) for name, value in source.items() if name.startswith("AWS_")})
    return merged
