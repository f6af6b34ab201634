# SPDX-License-Identifier: Apache-2.0
"""What the hub asks of the control API: the state of a tunnel's ends; and tunnels, found, opened and taken over.

boto3's core, botocore, is imported when the first call is made: it is large, and most hubs never need it. The client is
the same as boto3's, without the 2 MB of what boto3 has beside it. All calls of one way to reach the API (keys, region,
endpoint) go through one client, whose adaptive retries hold the rate below what AWS throttles.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Callable, NamedTuple, TypeVar

from .client import HubError

__all__ = ["MANAGED_TAGS", "ControlPlane", "EndStates", "FoundTunnel"]

log = logging.getLogger(__name__)

MANAGED_TAGS = {"iotops:managed-by": "iotops.tunnel"}
"""By these, tunnels that iotops.tunnel opened are found again; the module ``iotops.tunnel.tunnel`` sets the same."""

ASK_SECONDS = 5.0
CALL_SECONDS = 20.0

_KEYS_REFUSED = ("InvalidSignatureException", "UnrecognizedClientException", "MissingAuthenticationTokenException")
_KEYS_EXPIRED = ("ExpiredTokenException", "RequestExpired")
_WRONG_REGION = "scoped to a valid region"

T = TypeVar("T")


class EndStates(NamedTuple):
    """What DescribeTunnel says of a tunnel.

    Attributes:
        tunnel: ``OPEN``, ``CLOSED``, ``GONE`` where the service does not know it, or empty where nobody could say.
        destination: ``connected``, ``disconnected``, or ``unknown``.
    """

    tunnel: str = ""
    destination: str = "unknown"


@dataclass(frozen=True)
class FoundTunnel:
    """An open tunnel, with a source token that nobody has used.

    Attributes:
        expires_at: when its life ends, in seconds since the epoch.
    """

    tunnel_id: str
    region: str
    services: tuple[str, ...]
    expires_at: float | None
    source_token: str = field(repr=False)


class ControlPlane:
    """The control API, as reached in one way.

    Args:
        aws: that way, by the names of the environment variables.
        region: the region to use; by default the one that ``aws`` or the AWS configuration names.
    """

    def __init__(self, aws: Mapping[str, str], region: str | None = None) -> None:
        self._variables = frozenset(aws.items())
        self._region = region

    async def end_states(self, tunnel_id: str) -> EndStates:
        """The state of a tunnel's ends; nothing is known where there is no answer in five seconds."""
        try:
            return await asyncio.wait_for(self._in_thread(lambda: self._end_states(tunnel_id)), ASK_SECONDS)
        except asyncio.TimeoutError:
            log.warning("the control API does not say within %.0f s what became of tunnel %s", ASK_SECONDS, tunnel_id)
        except HubError as error:
            log.warning("the state of tunnel %s is not known: %s", tunnel_id, error)
        return EndStates()

    async def take(self, thing: str, service: str, life: float) -> FoundTunnel | None:
        """Find the open tunnel of a thing that carries a service, and rotate its source token; None if there is none.

        Of several, the one whose destination is connected, and else the newest, is taken.

        Args:
            life: seconds that the tunnel must have left.

        Raises:
            HubError: the control API does not do it.
        """
        return await self._in_thread(lambda: self._take(thing, service, life))

    async def open(self, thing: str, services: Sequence[str]) -> FoundTunnel:
        """Open a tunnel to a thing (OpenTunnel; AWS charges for it).

        Raises:
            HubError: the control API does not do it.
        """
        return await self._in_thread(lambda: self._open(thing, services))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, self._explained, call)

    def _explained(self, call: Callable[[], T]) -> T:
        """Make a call of botocore's; its errors become sentences."""
        try:
            from botocore import exceptions as aws_errors
        except ImportError:
            raise HubError(
                f"the Python that runs Ansible and the hub has no boto3: {sys.executable} -m pip install boto3",
                code="no-boto3",
            ) from None
        try:
            return call()
        except aws_errors.ClientError as error:
            raise HubError(_refusal(error), code="control-api") from None
        except (aws_errors.NoCredentialsError, aws_errors.PartialCredentialsError):
            raise HubError(
                "there are no complete AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY",
                code="wrong-credentials",
            ) from None
        except aws_errors.NoRegionError:
            raise HubError("no AWS region is set: set AWS_REGION", code="wrong-region") from None
        except aws_errors.ProfileNotFound as error:
            raise HubError(f"{error}: set AWS_PROFILE to another", code="wrong-credentials") from None
        except aws_errors.SSLError as error:
            endpoint = error.kwargs.get("endpoint_url", "the control API")
            raise HubError(
                f"the certificate of {endpoint} is not to be trusted: name its authority with AWS_CA_BUNDLE",
                code="control-api",
            ) from None
        except (aws_errors.BotoCoreError, OSError, ValueError) as error:
            # Not all is of botocore's own kind: a CA bundle that is not there, an endpoint that is no URL.
            raise HubError(
                f"the control API cannot be reached ({error}): see to this machine's network, AWS_REGION, and "
                "AWS_ENDPOINT_URL_IOTSECURETUNNELING where it is set",
                code="control-api",
            ) from None

    def _end_states(self, tunnel_id: str) -> EndStates:
        client = _client(self._region, self._variables)
        try:
            tunnel = client.describe_tunnel(tunnelId=tunnel_id)["tunnel"]
        except client.exceptions.ResourceNotFoundException:
            return EndStates(tunnel="GONE")
        return EndStates(tunnel.get("status", ""), _destination_state(tunnel))

    def _take(self, thing: str, service: str, life: float) -> FoundTunnel | None:
        client = _client(self._region, self._variables)
        found = [
            tunnel
            for tunnel in _open_tunnels(client, thing)
            if service in _services(tunnel) and (_expiry(tunnel) or math.inf) > time.time() + life
        ]
        if not found:
            return None
        tunnel = next((each for each in found if _destination_state(each) == "connected"), found[0])
        rotated = client.rotate_tunnel_access_token(tunnelId=tunnel["tunnelId"], clientMode="SOURCE")
        log.info("took over the open tunnel %s of %s", tunnel["tunnelId"], thing)
        return _found(client, tunnel, rotated["sourceAccessToken"])

    def _open(self, thing: str, services: Sequence[str]) -> FoundTunnel:
        client = _client(self._region, self._variables)
        opened = client.open_tunnel(
            destinationConfig={"thingName": thing, "services": list(services)},
            tags=[{"key": key, "value": value} for key, value in MANAGED_TAGS.items()],
        )
        log.info("opened the tunnel %s to %s", opened["tunnelId"], thing)
        tunnel = client.describe_tunnel(tunnelId=opened["tunnelId"])["tunnel"]
        return _found(client, tunnel, opened["sourceAccessToken"])


@functools.lru_cache(maxsize=16)
def _client(region: str | None, variables: frozenset[tuple[str, str]]) -> Any:
    """One client per way to reach the control API: making one takes longer than asking it."""
    from botocore.config import Config
    from botocore.session import Session

    aws = dict(variables)
    core = Session(profile=aws.get("AWS_PROFILE"))
    client = core.create_client(
        "iotsecuretunneling",
        region_name=region or aws.get("AWS_REGION") or aws.get("AWS_DEFAULT_REGION"),
        aws_access_key_id=aws.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=aws.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=aws.get("AWS_SESSION_TOKEN"),
        endpoint_url=aws.get("AWS_ENDPOINT_URL_IOTSECURETUNNELING") or aws.get("AWS_ENDPOINT_URL"),
        verify=aws.get("AWS_CA_BUNDLE"),
        config=Config(
            connect_timeout=ASK_SECONDS,
            read_timeout=CALL_SECONDS,
            retries={"mode": "adaptive", "max_attempts": 6},
            max_pool_connections=10,
        ),
    )
    # What botocore has read of AWS's regions and services is 7 MB, and it keeps that for the next client.
    getattr(core.get_component("data_loader"), "_cache", {}).clear()
    return client


def _open_tunnels(client: Any, thing: str) -> Iterator[dict[str, Any]]:
    """The open tunnels of a thing that are ours, the newest first, as DescribeTunnel shows them."""
    request: dict[str, Any] = {"thingName": thing}
    while True:
        page = client.list_tunnels(**request)
        for summary in page.get("tunnelSummaries", ()):
            if summary.get("status") != "OPEN":
                continue
            tunnel = client.describe_tunnel(tunnelId=summary["tunnelId"])["tunnel"]
            tags = {tag["key"]: tag["value"] for tag in tunnel.get("tags", ())}
            if tunnel["status"] == "OPEN" and tags.items() >= MANAGED_TAGS.items():
                yield tunnel
        if not page.get("nextToken"):
            return
        request["nextToken"] = page["nextToken"]


def _found(client: Any, tunnel: Mapping[str, Any], source_token: str) -> FoundTunnel:
    return FoundTunnel(
        tunnel_id=tunnel["tunnelId"],
        region=client.meta.region_name,
        services=_services(tunnel),
        expires_at=_expiry(tunnel),
        source_token=source_token,
    )


def _services(tunnel: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(tunnel.get("destinationConfig", {}).get("services", ()))


def _destination_state(tunnel: Mapping[str, Any]) -> str:
    return str(tunnel.get("destinationConnectionState", {}).get("status", "unknown")).lower()


def _expiry(tunnel: Mapping[str, Any]) -> float | None:
    created: datetime | None = tunnel.get("createdAt")
    minutes = tunnel.get("timeoutConfig", {}).get("maxLifetimeTimeoutMinutes")
    return None if created is None or minutes is None else (created + timedelta(minutes=minutes)).timestamp()


def _refusal(error: Any) -> str:
    said = error.response.get("Error", {})
    code, message = said.get("Code", ""), said.get("Message", "")
    if _WRONG_REGION in message:
        return f"the AWS keys are used for the wrong region ({message}): set AWS_REGION to that of the endpoint"
    if code in _KEYS_REFUSED:
        return f"the AWS keys are not accepted ({code}): check them, and that they are meant for this endpoint"
    if code in _KEYS_EXPIRED:
        return f"the AWS session is over ({code}), or this machine's clock is wrong: log in again"
    return f"the control API refuses the call ({code}: {message})"
