# SPDX-License-Identifier: Apache-2.0
"""The environment variables with which clients find and use a service."""

from __future__ import annotations

import shlex

from .errors import ServiceError
from .state.directory import StateDirectory
from .state.schema import DEFAULT_KEY
from .state.store import Store

__all__ = ["client_environment", "export_lines"]


def client_environment(state: StateDirectory, key_name: str = DEFAULT_KEY) -> dict[str, str]:
    """The variables that make boto3, the ``aws`` CLI and ``tunnelproxy`` use a service.

    Args:
        state: the service's state directory.
        key_name: the name of the access key to use.

    Raises:
        ServiceError: no service has run with this directory yet, or it has no such key.
    """
    start_it = f"start it with: tunnelproxy service run --state-dir {shlex.quote(str(state.path))}"
    if not state.database.exists():
        raise ServiceError(f"there is no tunneling service in {state.path}; {start_it}")
    endpoints = state.read_endpoints()
    if endpoints is None:
        raise ServiceError(f"the tunneling service in {state.path} has never been started; {start_it}")
    store = Store(state.database)
    try:
        key, region = store.named_key(key_name), store.identity().region
    finally:
        store.close()
    if key is None:
        raise ServiceError(
            f"the tunneling service in {state.path} has no access key {key_name}; "
            "see: tunnelproxy service key list, and name one with --key"
        )
    environment = {
        "AWS_ENDPOINT_URL_IOTSECURETUNNELING": endpoints.api,
        "AWS_ENDPOINT_URL_IOT": endpoints.api,
        "AWS_ACCESS_KEY_ID": key.credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": key.credentials.secret_access_key,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWSIOT_TUNNEL_ENDPOINT": endpoints.data,
    }
    if not endpoints.own_certificate:
        environment["AWS_CA_BUNDLE"] = str(state.ca / "ca.pem")
        environment["AWSIOT_TUNNEL_CAPATH"] = str(state.ca)
    return environment


def export_lines(environment: dict[str, str]) -> str:
    """The variables as lines that a POSIX shell can evaluate."""
    return "".join(f"export {name}={_quote(value)}\n" for name, value in environment.items())


def _quote(value: str) -> str:
    # Unlike shlex.quote, this always quotes, so that all lines look alike.
    return "'" + value.replace("'", "'\"'\"'") + "'"
