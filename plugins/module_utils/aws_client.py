# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One of AWS's APIs through boto3, with one sentence for each way in which a call fails."""

from __future__ import annotations

import contextlib
import os
import traceback
from dataclasses import dataclass

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


_ATTEMPTS = 6


class ControlApiError(Exception):
    """A call failed; the text is a sentence for the operator. C(not_found) tells that what was named does not exist."""

    def __init__(self, sentence: str, *, not_found: bool = False) -> None:
        super().__init__(sentence)
        self.not_found = not_found


@dataclass(frozen=True)
class Api:
    """An API: its name in boto3, what sentences call it, and what to do about a refusal where that is special."""

    name: str
    title: str
    permission: str
    throttled: str
    over_limit: str
    missing: str


class AwsClient:
    """Makes calls. Throttled ones are repeated, after waits that grow and are spread at random.

    Credentials, region and endpoint come from C(environment), by the names of botocore's environment variables.
    """

    def __init__(self, api: Api, environment: dict[str, str], *, validate_certs: bool = True) -> None:
        self._api = api
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        # botocore's standard mode: up to 20 s between attempts, each wait a random share of its bound.
        retries = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in environment:
            retries["max_attempts"] = _ATTEMPTS
        try:
            with _only(environment):
                self._client = boto3.session.Session(region_name=region).client(
                    api.name,
                    verify=None if validate_certs else False,
                    config=Config(connect_timeout=10, read_timeout=30, retries=retries),
                )
        except (botocore_exceptions.BotoCoreError, ValueError) as error:
            raise ControlApiError(f"Could not reach {api.title}: {self._cause(error, '')}") from error

    @property
    def region(self) -> str:
        """The region that the calls go to."""
        return self._client.meta.region_name

    @property
    def endpoint(self) -> str:
        """The URL that the calls go to."""
        return self._client.meta.endpoint_url

    def call(self, purpose: str, operation: str, **request):
        """Make one call. C(purpose) says what for, after "Could not"."""
        try:
            return getattr(self._client, operation)(**request)
        except (botocore_exceptions.BotoCoreError, botocore_exceptions.ClientError) as error:
            cause = self._cause(error, f"{self.endpoint} (region {self.region})")
            raise ControlApiError(
                f"Could not {purpose}: {cause}", not_found=_code(error) == "ResourceNotFoundException"
            ) from error

    def pages(self, purpose: str, operation: str, **request):
        """Generate the answers of a call that has C(nextToken)."""
        while True:
            answer = self.call(purpose, operation, **request)
            yield answer
            if not answer.get("nextToken"):
                return
            request["nextToken"] = answer["nextToken"]

    def _cause(self, error: Exception, endpoint: str) -> str:
        if isinstance(error, botocore_exceptions.ClientError):
            return self._refusal(error, endpoint)
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
                "the AWS configuration files have no such profile. Set profile to one of those that `aws configure "
                "list-profiles` shows.",
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
        return f"{error} Check the options that say how to reach {self._api.title}."

    def _refusal(self, error: Exception, endpoint: str) -> str:
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
                f"the AWS keys lack the permission ({code}: {said}). {self._api.permission}",
            ),
            (_THROTTLED, f"{endpoint} throttles the calls ({code}), even after waiting. {self._api.throttled}"),
            (
                ("LimitExceededException",),
                f"a limit of the account is reached ({said}). {self._api.over_limit}",
            ),
            (("ResourceNotFoundException",), f"{endpoint} {self._api.missing}"),
        )
        if code in ("401", "403"):
            # What stands between says it with the status alone.
            return f"{endpoint} refuses the AWS keys (HTTP status {code}). Check them, and that they are meant for it."
        return next((cause for codes, cause in known if code in codes), f"{endpoint} answered {code}: {said}")


@contextlib.contextmanager
def _only(environment: dict[str, str]):
    """Make this process's AWS environment that one, and no more, while a client is made, for then botocore reads it.

    A profile must not meet keys that it replaces.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    _replace(before, environment)
    try:
        yield
    finally:
        _replace(environment, before)


def _replace(old: dict[str, str], new: dict[str, str]) -> None:
    for name in old:
        os.environ.pop(name, None)
    os.environ.update(new)


def _code(error: Exception) -> str:
    return getattr(error, "response", {}).get("Error", {}).get("Code", "")
