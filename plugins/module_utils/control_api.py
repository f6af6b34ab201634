# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control API of AWS IoT Secure Tunneling through boto3, with one sentence for each way in which a call fails.

Reference: botocore's C(iotsecuretunneling) model.
"""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from datetime import datetime, timedelta

try:
    import boto3
    from botocore import exceptions as botocore_exceptions
    from botocore.config import Config
except ImportError:
    BOTO3_IMPORT_ERROR = traceback.format_exc()
else:
    BOTO3_IMPORT_ERROR = None

# AWS, like the tunneling service, says so in the text of an InvalidSignatureException.
_WRONG_REGION = "scoped to a valid region"
_KEYS_REFUSED = (
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "IncompleteSignatureException",
    "MissingAuthenticationTokenException",
)
_KEYS_EXPIRED = ("ExpiredTokenException", "ExpiredToken", "RequestExpired")
_DENIED = ("AccessDeniedException", "AccessDenied", "ForbiddenException")
_THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown")


class ControlApiError(Exception):
    """A call failed; the text is a sentence for the operator. C(not_found) tells that the tunnel does not exist."""

    def __init__(self, sentence: str, *, not_found: bool = False) -> None:
        super().__init__(sentence)
        self.not_found = not_found


@dataclass(frozen=True)
class Tunnel:
    """What DescribeTunnel says of one tunnel. Lifetime is in minutes."""

    tunnel_id: str
    arn: str
    status: str
    thing_name: str | None
    services: tuple[str, ...]
    description: str | None
    tags: dict[str, str]
    lifetime: int
    created_at: datetime | None
    source: str
    destination: str

    @property
    def is_open(self) -> bool:
        """A closed tunnel never opens again."""
        return self.status == "open"

    @property
    def expires_at(self) -> datetime | None:
        """When the service closes this tunnel."""
        return self.created_at + timedelta(minutes=self.lifetime) if self.created_at else None

    @classmethod
    def from_description(cls, answer: dict) -> Tunnel:
        """Make it from the C(tunnel) of a DescribeTunnel answer."""
        config = answer.get("destinationConfig", {})
        return cls(
            tunnel_id=answer["tunnelId"],
            arn=answer["tunnelArn"],
            status=answer["status"].lower(),
            thing_name=config.get("thingName"),
            services=tuple(config.get("services", ())),
            description=answer.get("description"),
            tags={tag["key"]: tag["value"] for tag in answer.get("tags", ())},
            lifetime=answer.get("timeoutConfig", {}).get("maxLifetimeTimeoutMinutes", 720),
            created_at=answer.get("createdAt"),
            source=_connection_state(answer.get("sourceConnectionState")),
            destination=_connection_state(answer.get("destinationConnectionState")),
        )


class ControlApi:
    """The calls that the module makes. Throttled calls are repeated, after waits that grow and are spread at random.

    Credentials, region and endpoint come from C(environment), by the names of botocore's environment variables.
    """

    def __init__(self, environment: dict[str, str], *, validate_certs: bool = True) -> None:
        _take_over(environment)
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        try:
            self._client = boto3.session.Session(region_name=region).client(
                "iotsecuretunneling",
                verify=None if validate_certs else False,
                config=Config(
                    connect_timeout=10,
                    read_timeout=30,
                    # botocore's standard mode: up to 20 s between attempts, each wait a random share of its bound.
                    retries={"mode": "standard", "max_attempts": 6},
                ),
            )
        except (botocore_exceptions.BotoCoreError, ValueError) as error:
            raise ControlApiError(_sentence(error, "reach the tunneling service", "")) from error

    @property
    def region(self) -> str:
        """The region that the calls go to."""
        return self._client.meta.region_name

    def open(
        self, thing: str | None, services: list[str], lifetime: int, description: str | None, tags: dict[str, str]
    ) -> tuple[str, dict[str, str]]:
        """Open a tunnel (OpenTunnel; billed). Return its ID, and the tokens by end."""
        request = {
            "destinationConfig": _destination_config(thing, services),
            "timeoutConfig": {"maxLifetimeTimeoutMinutes": lifetime},
            "tags": _tag_list(tags),
        }
        if description:
            request["description"] = description
        answer = self._call("open a tunnel to " + (thing or "a device without a thing name"), "open_tunnel", **request)
        return answer["tunnelId"], _tokens(answer)

    def describe(self, tunnel_id: str) -> Tunnel:
        """Say all about one tunnel (DescribeTunnel)."""
        answer = self._call(f"describe tunnel {tunnel_id}", "describe_tunnel", tunnelId=tunnel_id)
        return Tunnel.from_description(answer["tunnel"])

    def open_tunnels(self, thing: str):
        """Generate the open tunnels of a thing, newest first (ListTunnels, and DescribeTunnel for each as it comes)."""
        request = {"thingName": thing, "maxResults": 100}
        while True:
            answer = self._call(f"list the tunnels of {thing}", "list_tunnels", **request)
            for summary in answer.get("tunnelSummaries", ()):
                if summary["status"] == "OPEN":
                    tunnel = self.describe(summary["tunnelId"])
                    if tunnel.is_open:
                        yield tunnel
            if not answer.get("nextToken"):
                return
            request["nextToken"] = answer["nextToken"]

    def rotate(self, tunnel: Tunnel, end: str) -> dict[str, str]:
        """Revoke and replace the tokens of C(source), C(destination) or C(all) ends. Return the new ones by end.

        A new destination token goes to the device by MQTT too, if the tunnel has a thing name.
        """
        request = {"tunnelId": tunnel.tunnel_id, "clientMode": end.upper()}
        if end != "source" and tunnel.thing_name:
            request["destinationConfig"] = _destination_config(tunnel.thing_name, tunnel.services)
        purpose = f"rotate tokens ({end}) of tunnel {tunnel.tunnel_id}"
        return _tokens(self._call(purpose, "rotate_tunnel_access_token", **request))

    def close(self, tunnel_id: str) -> None:
        """Close a tunnel (CloseTunnel)."""
        self._call(f"close tunnel {tunnel_id}", "close_tunnel", tunnelId=tunnel_id)

    def tag(self, tunnel: Tunnel, tags: dict[str, str]) -> None:
        """Add tags, or change their values (TagResource)."""
        purpose = f"tag tunnel {tunnel.tunnel_id}"
        self._call(purpose, "tag_resource", resourceArn=tunnel.arn, tags=_tag_list(tags))

    def untag(self, tunnel: Tunnel, keys: list[str]) -> None:
        """Remove tags (UntagResource)."""
        purpose = f"remove tags from tunnel {tunnel.tunnel_id}"
        self._call(purpose, "untag_resource", resourceArn=tunnel.arn, tagKeys=keys)

    def _call(self, purpose: str, operation: str, **request):
        try:
            return getattr(self._client, operation)(**request)
        except (botocore_exceptions.BotoCoreError, botocore_exceptions.ClientError) as error:
            sentence = _sentence(error, purpose, f"{self._client.meta.endpoint_url} (region {self.region})")
            raise ControlApiError(sentence, not_found=_code(error) == "ResourceNotFoundException") from error


def _take_over(environment: dict[str, str]) -> None:
    """Make this process's AWS environment that one, and no more: a profile must not meet keys that it replaces."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(environment)


def _connection_state(state: dict | None) -> str:
    return (state or {}).get("status", "DISCONNECTED").lower()


def _destination_config(thing: str | None, services) -> dict:
    config = {"services": list(services)}
    if thing:
        config["thingName"] = thing
    return config


def _tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _tokens(answer: dict) -> dict[str, str]:
    tokens = {"source": answer.get("sourceAccessToken"), "destination": answer.get("destinationAccessToken")}
    return {end: token for end, token in tokens.items() if token}


def _code(error: Exception) -> str:
    return getattr(error, "response", {}).get("Error", {}).get("Code", "")


def _sentence(error: Exception, purpose: str, endpoint: str) -> str:
    return f"Could not {purpose}: {_cause(error, endpoint)}"


def _cause(error: Exception, endpoint: str) -> str:
    if isinstance(error, botocore_exceptions.ClientError):
        return _refusal(error, endpoint)
    known = (
        (
            (botocore_exceptions.NoCredentialsError, botocore_exceptions.PartialCredentialsError),
            "there are no complete AWS credentials. Set access_key and secret_key, or profile, or the environment "
            "variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        ),
        (
            (botocore_exceptions.NoRegionError,),
            "no AWS region is set. Set region, or the environment variable AWS_REGION.",
        ),
        (
            (botocore_exceptions.InvalidRegionError,),
            "that is not an AWS region's name. Set region to one such as eu-central-1.",
        ),
        (
            (botocore_exceptions.ProfileNotFound,),
            "the AWS configuration files have no such profile. Set profile to one of `aws configure list-profiles`.",
        ),
        (
            (botocore_exceptions.SSLError,),
            f"the certificate of {endpoint} is not trusted here. Set aws_ca_bundle to its authority's certificate.",
        ),
        (
            (botocore_exceptions.HTTPClientError, botocore_exceptions.ConnectionError),
            f"{endpoint} cannot be reached. Check region, endpoint_url, and this machine's way to the network.",
        ),
    )
    for classes, cause in known:
        if isinstance(error, classes):
            return cause
    return f"{error} Check the options of this task."


def _refusal(error: Exception, endpoint: str) -> str:
    code = _code(error)
    said = error.response.get("Error", {}).get("Message") or code
    if code in _KEYS_REFUSED and _WRONG_REGION in said:
        return f"{endpoint} is not of that region ({said}) Set region, or AWS_REGION, to the one of the endpoint."
    known = (
        (
            _KEYS_REFUSED,
            f"{endpoint} does not accept the AWS keys ({code}). Check access_key and secret_key, and that they are "
            "meant for this endpoint and region.",
        ),
        (_KEYS_EXPIRED, f"the AWS session is over ({code}), or this machine's clock is wrong. Log in again."),
        (
            _DENIED,
            f"the AWS keys lack the permission ({code}: {said}). Allow the iot: actions for tunnels in their policy.",
        ),
        (_THROTTLED, f"{endpoint} throttles the calls ({code}), even after waiting. Try again with fewer forks."),
        (
            ("LimitExceededException",),
            f"a limit of the account is reached ({said}). Close tunnels that nobody needs, or ask for fewer services.",
        ),
        (("ResourceNotFoundException",), f"{endpoint} has no such tunnel. Check tunnel_id and region."),
    )
    return next((cause for codes, cause in known if code in codes), f"{endpoint} answered {code}: {said}")
