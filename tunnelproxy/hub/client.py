# SPDX-License-Identifier: Apache-2.0
"""The hub's client, for plugins and the command line. It starts the hub if none is running.

Standard library only, and quick to import: Ansible compiles this module in each of its workers. :mod:`.wire` sends
requests to the hub, and :mod:`.location` finds it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .location import DIRECTORY_VARIABLE, HubError, cannot_write, directory, log_path
from .wire import (
    OPEN_SECONDS,
    OPENING_SECONDS,
    START_SECONDS,
    Caller,
    NotRunningError,
    ask,
    ask_running,
    connect_to_running,
    current_directory,
    explain,
    open_stream,
    peer_pid,
    send,
    unresponsive,
)

if TYPE_CHECKING:
    from .health import Answer

__all__ = [
    "DIRECTORY_VARIABLE",
    "Caller",
    "HealthCheck",
    "HubError",
    "adopt",
    "ask_health",
    "call",
    "cannot_write",
    "connector_command",
    "current_directory",
    "describe",
    "directory",
    "ensure",
    "explain",
    "explain_break",
    "holds",
    "locate",
    "open_stream",
    "prepare",
    "release",
    "status",
    "stop",
]

DEFAULT_SERVICES = ("SSH1", "HTTP1")

_CONNECTOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "connector.py")


class HealthCheck(NamedTuple):
    """What to ask a device before ssh connects to it.

    Attributes:
        service: the service ID of its HTTP server.
        path: the path to request.
        statuses: the HTTP statuses of a healthy device.
    """

    service: str
    path: str
    statuses: Sequence[int]


def ensure(
    thing: str,
    service: str = "SSH1",
    *,
    open_policy: str = "never",
    services: Sequence[str] = DEFAULT_SERVICES,
    ports: Mapping[str, int | None] | None = None,
    any_host: Sequence[str] = (),
    wait: float = 30.0,
    timeout: float = 10.0,
    owner: str | None = None,
    unregistered: bool = False,
    caller: Caller | None = None,
) -> dict[str, Any]:
    """Wait until the tunnel of a thing is linked; start the hub if necessary.

    Args:
        open_policy: what to do if the hub holds no working tunnel. ``never`` fails; ``reuse`` reuses an open tunnel of
            the same owner, ``take_over`` one of any owner that the collection opened, and both open a tunnel if there
            is none; ``always`` opens one.
        services: the service IDs of a tunnel that is opened.
        ports: where to listen on the loopback, by service ID: 0 for any port, None for none. Other services stay as
            they are.
        any_host: the services in ``ports`` whose port accepts requests for any host, and therefore from any web page.
        wait: seconds that the device has to connect to a tunnel that the hub did not hold before.
        timeout: seconds to wait for the link.
        owner: the owner of a tunnel that is opened or taken over; by default ``IOTOPS_TUNNEL_OWNER``, or the user and
            machine.
        unregistered: open a tunnel even to a thing that is not in the registry.
        caller: the process whose environment determines the account; by default this one.

    Returns:
        the row of this tunnel in :func:`status`, with the hub's process ID as ``hub_pid``, the owner that it was just
        taken over from as ``taken_from``, and the reason why the next hub would not know it as ``not_saved``.

    Raises:
        HubError: there is no tunnel, it is not linked, or it does not carry the service; the text says why.
    """
    caller = caller or Caller.here()
    return ask(
        "ensure",
        timeout,
        extra=wait + OPENING_SECONDS,
        # The next hub finds a tunnel that this one has opened, in its file or by the tunnel's tags.
        repeatable=open_policy != "always",
        thing=thing,
        service=service,
        open=open_policy,
        services=list(services),
        ports=dict(ports or {}),
        any_host=list(any_host),
        wait=wait,
        owner=_owner(owner, caller),
        unregistered=unregistered,
        caller=caller.to_json(),
    )


def locate(thing: str | None, *, caller: Caller | None = None, timeout: float = OPENING_SECONDS) -> dict[str, Any]:
    """Find out which account a thing is in, according to the caller's environment. Opens no tunnel.

    Args:
        thing: None to ask only for the account.

    Returns:
        ``account``, the account's name in requests, ``account_name``, its name in messages, and ``region``; for a thing
        also ``ssh_name``, ``host_key_name`` and ``qualified_name``, the thing's names for ssh.

    Raises:
        HubError: the control API does not answer, or refuses the call.
    """
    return ask("locate", timeout, thing=thing, caller=_caller(caller))


def prepare(
    thing: str | None,
    services: Sequence[str],
    *,
    ports: Mapping[str, int | None] | None = None,
    unregistered: bool = False,
    caller: Caller | None = None,
    timeout: float = OPENING_SECONDS,
) -> dict[str, Any]:
    """Check that a tunnel to a thing would work, before it is paid for.

    Args:
        thing: None for a tunnel whose token is copied to a device.
        services: the service IDs of the tunnel.
        ports: their ports on the loopback, as for :func:`ensure`.
        unregistered: accept a thing that is not in the registry.

    Raises:
        HubError: the registry does not know the thing, or the data plane cannot be reached.
    """
    return ask(
        "prepare",
        timeout,
        thing=thing,
        services=list(services),
        ports=dict(ports or {}),
        unregistered=unregistered,
        caller=_caller(caller),
    )


def call(
    operation: str,
    parameters: Mapping[str, Any],
    *,
    purpose: str,
    api: str = "iotsecuretunneling",
    caller: Caller | None = None,
    timeout: float = OPENING_SECONDS,
) -> dict[str, Any]:
    """Make one call of a control API.

    Args:
        operation: the method of botocore's client.
        purpose: what the call is for, in words that follow "Could not".
        api: botocore's name of the API.

    Returns:
        the answer; times are strings in ISO 8601 format.

    Raises:
        HubError: the call is refused, or not answered; the text gives the reason, ``code`` the same in one word.
    """
    return ask(
        "call",
        timeout,
        operation=operation,
        parameters=dict(parameters),
        purpose=purpose,
        api=api,
        caller=_caller(caller),
    )


def adopt(
    thing: str,
    *,
    tunnel_id: str,
    tunnel_arn: str,
    source_token: str,
    services: Sequence[str],
    owner: str = "",
    expires_at: float | None = None,
    ports: Mapping[str, int | None] | None = None,
    any_host: Sequence[str] = (),
    caller: Caller | None = None,
    timeout: float = 10.0,
) -> dict[str, Any]:
    """Pass the source access token of an open tunnel to the hub, and wait until the tunnel is linked.

    Args:
        tunnel_arn: identifies its account and region.
        services: the service IDs that the tunnel carries.
        owner: the tunnel's owner.
        expires_at: when the tunnel expires, in seconds since the epoch.
        ports: as for :func:`ensure`.
        any_host: as for :func:`ensure`.
        caller: the process whose environment names the data plane; by default this one.
        timeout: seconds to wait for the link.

    Returns:
        the row of this tunnel in :func:`status`, with the reason why the next hub would not know it as ``not_saved``.

    Raises:
        HubError: the tunneling service cannot be reached or refuses the token.
    """
    return ask(
        "adopt",
        timeout,
        extra=OPENING_SECONDS,
        thing=thing,
        tunnel_id=tunnel_id,
        tunnel_arn=tunnel_arn,
        source_token=source_token,
        services=list(services),
        owner=owner,
        expires_at=expires_at,
        ports=dict(ports or {}),
        any_host=list(any_host),
        caller=_caller(caller),
    )


def describe(thing: str, *, caller: Caller | None = None, timeout: float = 10.0) -> dict[str, Any]:
    """The row of a thing's tunnel in :func:`status`, with the state of both ends.

    Returns:
        the row, with ``source`` (``connected`` or ``disconnected``) and ``destination`` (one of these, or ``unknown``).

    Raises:
        HubError: the hub holds no tunnel for the thing.
    """
    return ask("describe", timeout, extra=OPENING_SECONDS, thing=thing, caller=_caller(caller))


def explain_break(thing: str, service: str, *, hub_pid: int | None, account: str) -> HubError:
    """Find out why a working connection to a service of a thing broke off.

    Args:
        hub_pid: the process ID of the hub that carried it.
        account: the thing's, as in a row of :func:`status`.
    """
    try:
        running = status()
    except HubError as error:
        return error
    if hub_pid is not None and (running or {}).get("pid") != hub_pid:
        return HubError(f"the hub (process {hub_pid}) has exited; it restarts automatically", code="hub-ended")
    found = explain(thing, service, refused=True, account=account)
    if found.code == "refused":
        return HubError(
            f"the device's SSH server closed it, or the path to the device failed briefly; see {log_path()}",
            code="broken",
        )
    return found


def release(tunnel_id: str, account: str) -> bool:
    """Have the hub drop a tunnel of an account, without closing it for others. Return whether the hub held it."""
    return bool(ask_running("release", tunnel_id=tunnel_id, account=account).get("released", False))


def holds(tunnel_id: str, account: str) -> bool:
    """Whether a running hub holds this tunnel of an account, with an access token that was not refused."""
    return bool(ask_running("holds", tunnel_id=tunnel_id, account=account).get("holds", False))


def status() -> dict[str, Any] | None:
    """The hub's tunnels; None if no hub is running."""
    return ask_running("status") or None


def stop() -> bool:
    """Stop the hub, and wait until its process has exited. Return whether one was running.

    Raises:
        HubError: it does not stop.
    """
    pid = 0
    try:
        with connect_to_running() as hub:
            pid = peer_pid(hub)
            hub.settimeout(START_SECONDS)
            send(hub, {"op": "stop"})
            while hub.recv(4096):
                pass
    except NotRunningError:
        return False
    except socket.timeout:
        raise unresponsive(pid) from None
    except OSError as error:
        raise HubError(f"the hub does not stop: {error.strerror or error}") from None
    return True


def ask_health(
    thing: str,
    service: str,
    path: str,
    *,
    account: str,
    headers: Mapping[str, str],
    content_limit: int,
    timeout: float,
) -> Answer:
    """Send one HTTP GET to a device through its tunnel; see :func:`.health.ask`."""
    from .health import ask as ask_device

    return ask_device(
        thing, service, path, account=account, headers=headers, content_limit=content_limit, timeout=timeout
    )


def connector_command(
    thing: str,
    service: str,
    *,
    account: str,
    timeout: float = OPEN_SECONDS,
    health_check: HealthCheck | None = None,
) -> list[str]:
    """The command line of ssh's ``ProxyCommand``, for use with ``ProxyUseFdpass=yes``.

    Args:
        account: the thing's, as in a row of :func:`status`.
        timeout: seconds that the device may take to answer.
        health_check: the health check to make first.
    """
    command = [sys.executable, "-I", "-S", _CONNECTOR, account, thing, service]
    if timeout != OPEN_SECONDS or health_check is not None:
        command.append(f"{timeout:g}")
    if health_check is not None:
        command += [health_check.service, health_check.path, ",".join(map(str, health_check.statuses))]
    return command


def _caller(caller: Caller | None) -> dict[str, Any]:
    return (caller or Caller.here()).to_json()


def _owner(owner: str | None, caller: Caller) -> str:
    from .tags import OWNER_VARIABLE, default_owner, valid_owner

    return valid_owner(owner or caller.environment.get(OWNER_VARIABLE) or "") or default_owner()
