# SPDX-License-Identifier: Apache-2.0
"""What the hub asks of the control API: the state of a tunnel's ends, to say which one is at fault."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["EndStates", "end_states"]

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0


class EndStates(NamedTuple):
    """What DescribeTunnel says of a tunnel.

    Attributes:
        tunnel: ``OPEN``, ``CLOSED``, ``GONE`` where the service does not know it, or empty where nobody could say.
        destination: ``connected``, ``disconnected``, or ``unknown``.
    """

    tunnel: str = ""
    destination: str = "unknown"


async def end_states(tunnel_id: str, region: str, aws: Mapping[str, str]) -> EndStates:
    """Ask the control API about a tunnel; say that nothing is known where it does not answer in five seconds.

    Args:
        aws: how to reach it, by the names of the environment variables.
    """
    loop = asyncio.get_running_loop()
    asking = loop.run_in_executor(None, _describe, tunnel_id, region, dict(aws))
    try:
        return await asyncio.wait_for(asking, ASK_SECONDS)
    except asyncio.TimeoutError:
        log.warning("the control API does not say within %.0f s what became of tunnel %s", ASK_SECONDS, tunnel_id)
    return EndStates()


def _describe(tunnel_id: str, region: str, aws: Mapping[str, str]) -> EndStates:
    try:
        from botocore.exceptions import BotoCoreError, ClientError

    except ImportError:
        log.warning("without boto3 the hub cannot ask for the state of a tunnel: pip install boto3")
        return EndStates()
    try:
        client = _client(region, frozenset(aws.items()))
        tunnel = client.describe_tunnel(tunnelId=tunnel_id)["tunnel"]
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        log.warning("DescribeTunnel of %s: %s", tunnel_id, code)
        return EndStates(tunnel="GONE" if code == "ResourceNotFoundException" else "")
    except BotoCoreError as error:
        log.warning("DescribeTunnel of %s: %s", tunnel_id, error)
        return EndStates()
    state = tunnel.get("destinationConnectionState", {}).get("status", "unknown")
    return EndStates(tunnel=tunnel.get("status", ""), destination=state.lower())


@functools.lru_cache(maxsize=16)
def _client(region: str, variables: frozenset[tuple[str, str]]) -> Any:
    """One client per way to reach the control API: making one takes longer than asking it."""
    import boto3
    from botocore.config import Config

    aws = dict(variables)
    session = boto3.session.Session(
        aws_access_key_id=aws.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=aws.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=aws.get("AWS_SESSION_TOKEN"),
        profile_name=aws.get("AWS_PROFILE"),
        region_name=region,
    )
    return session.client(
        "iotsecuretunneling",
        endpoint_url=aws.get("AWS_ENDPOINT_URL_IOTSECURETUNNELING") or aws.get("AWS_ENDPOINT_URL"),
        verify=aws.get("AWS_CA_BUNDLE"),
        config=Config(connect_timeout=ASK_SECONDS, read_timeout=ASK_SECONDS, retries={"max_attempts": 1}),
    )
