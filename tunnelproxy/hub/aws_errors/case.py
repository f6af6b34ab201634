# SPDX-License-Identifier: Apache-2.0
"""What failed: the error, the API that was called, and who called it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .caller_config import CallerConfig
from .redact import MOST_WORDS, redact

__all__ = ["APIS", "Api", "Case", "Failure", "origin", "wrong_credentials"]


class Api(NamedTuple):
    """An API, and phrases for sentences about it.

    Attributes:
        name: botocore's name of it.
        title: what sentences call it.
        permission: what to do about a missing permission.
        throttled: what to do about calls that are throttled.
        over_limit: what to do about a limit of the account.
        missing: what does not exist there, and what to do; follows its name.
    """

    name: str
    title: str
    permission: str
    throttled: str
    over_limit: str
    missing: str


APIS: Mapping[str, Api] = {
    api.name: api
    for api in (
        Api(
            name="iotsecuretunneling",
            title="the tunneling service",
            permission="allow the iot: actions for tunnels in their policy",
            throttled="try again with fewer forks",
            over_limit="close unused tunnels, or ask for fewer services",
            missing="has no such tunnel: check its ID, the account and the region",
        ),
        Api(
            name="iot",
            title="the registry of things",
            permission="allow iot:ListThings and iot:DescribeThing in their policy, for thing groups also "
            "iot:ListThingsInThingGroup, for queries iot:SearchIndex",
            throttled="try again later, raise AWS_MAX_ATTEMPTS, or set cache",
            over_limit="try again later",
            missing="has no such thing, thing group or index: check its name, the account and the region",
        ),
    )
}


class Failure(NamedTuple):
    """Why a call failed.

    Attributes:
        code: for programs, such as ``wrong-credentials``.
        sentence: for the operator; it starts in lower case and has no full stop.
    """

    code: str
    sentence: str


# Services that provide credentials. botocore itself calls them; their endpoint is not known.
_AWS_SERVICES = {
    "AssumeRole": "AWS STS",
    "AssumeRoleWithWebIdentity": "AWS STS",
    "GetCallerIdentity": "AWS STS",
    "GetRoleCredentials": "AWS SSO",
}


@dataclass(frozen=True)
class Case:
    """A failure to explain."""

    error: BaseException
    api: Api
    endpoint: str
    region: str
    caller: CallerConfig
    now: float

    @property
    def service(self) -> str:
        """The service that was called: its URL, or else its name."""
        of_credentials = _AWS_SERVICES.get(getattr(self.error, "operation_name", ""))
        return of_credentials or self.endpoint or self.api.title

    @property
    def where(self) -> str:
        """The service that was called, and its region."""
        return f"{self.service} (region {self.region})" if self.region else self.service

    @property
    def endpoint_setting(self) -> str:
        """The environment variable that names the endpoint; empty if there is none, or if it is not at fault."""
        if self.in_credentials:
            return ""
        for name in (f"AWS_ENDPOINT_URL_{self.api.name.upper()}", "AWS_ENDPOINT_URL"):
            if self.caller.environment.get(name):
                return name
        return ""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """botocore's error message."""
        found: Mapping[str, Any] = getattr(self.error, "kwargs", {})
        return found

    def passed(self, *modules: str) -> bool:
        """Whether the error was raised in, or passed through, one of these modules."""
        return not set(modules).isdisjoint(self._modules())

    @property
    def in_credentials(self) -> bool:
        """Whether it arose while botocore looked for credentials."""
        return self.passed("botocore.credentials", "botocore.tokens")

    def words(self, text: object, limit: int = MOST_WORDS) -> str:
        """The output of another program, made safe for a sentence."""
        return redact(str(text), self.caller.environment, limit)

    def _modules(self) -> Iterator[str]:
        trace = self.error.__traceback__
        while trace is not None:
            yield trace.tb_frame.f_globals.get("__name__", "")
            trace = trace.tb_next


def wrong_credentials(sentence: str) -> Failure:
    """A failure whose cause is the caller's credentials."""
    return Failure("wrong-credentials", sentence)


def origin(url: str) -> str:
    """The scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.scheme and parts.netloc else url
