# SPDX-License-Identifier: Apache-2.0
"""Error responses of services: botocore's ``ClientError``, by the code in the response."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

from .caller_config import SSO_SETTINGS, CallerConfig
from .case import Case, Failure, wrong_credentials

__all__ = ["explain_answer"]


_KEYS_REFUSED = (
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
    "UnauthorizedException",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "AuthFailure",
    "NotAuthorized",
    "OptInRequired",
)
_KEYS_EXPIRED = ("ExpiredTokenException", "ExpiredToken", "TokenRefreshRequired")
_DENIED = ("AccessDeniedException", "AccessDenied", "ForbiddenException", "UnauthorizedOperation")
_THROTTLED = (
    "ThrottlingException",
    "Throttling",
    "ThrottledException",
    "RequestThrottled",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "SlowDown",
    "429",
)
_OVER_LIMIT = ("LimitExceededException", "ServiceQuotaExceededException")
_BAD_INPUT = ("InvalidRequestException", "ValidationException", "InvalidQueryException", "InvalidParameterException")
_CLOCK = ("RequestExpired", "RequestTimeTooSkewed")
_CLOCK_WORDS = ("Signature expired", "not yet current")
_WRONG_REGION = "scoped to a valid region"
_ROLE_CALLS = ("AssumeRole", "AssumeRoleWithWebIdentity")
_MOST_SKEW = 4 * 60.0
"""AWS allows five minutes, and a request takes a while."""


def explain_answer(case: Case, error: ClientError) -> Failure:
    """Explain the response of a service that refused a call."""
    answer: Mapping[str, Any] = error.response.get("Error", {})
    kind, message = str(answer.get("Code", "")), str(answer.get("Message", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return (
        _wrong_clock(case, error, kind, message)
        or _wrong_scope(case, message)
        or _known_refusal(case, error, kind, message)
        or _plain_status(case, kind, status, message)
        or Failure("control-api", f"{case.where} answered {case.words(kind)}: {case.words(message) or 'no more'}")
    )


def _wrong_clock(case: Case, error: ClientError, kind: str, message: str) -> Failure | None:
    """Explain an error that a wrong clock has caused: it makes valid keys look wrong or expired."""
    skew = _skew(case, error)
    about_time = kind in _CLOCK or any(words in message for words in _CLOCK_WORDS)
    about_keys = kind in (*_KEYS_REFUSED, *_KEYS_EXPIRED, "401", "403")
    if abs(skew) > _MOST_SKEW and (about_time or about_keys):
        side = "ahead of" if skew > 0 else "behind"
        return Failure(
            "wrong-clock",
            f"this machine's clock is {_duration(abs(skew))} {side} that of {case.service}, so that it does not accept "
            f"the AWS keys ({case.words(kind)}): set the clock, for example with `sudo timedatectl set-ntp true`",
        )
    if about_time:
        return Failure(
            "wrong-clock",
            f"{case.service} does not accept the time of the request ({case.words(message or kind)}): check this "
            "machine's clock, then try again",
        )
    return None


def _skew(case: Case, error: ClientError) -> float:
    """How many seconds this machine's clock is ahead of the service's, according to the response."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return case.now - parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0


def _duration(seconds: float) -> str:
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"


def _wrong_scope(case: Case, message: str) -> Failure | None:
    if _WRONG_REGION not in message:
        return None
    return Failure(
        "wrong-region",
        f"the AWS keys are used for the wrong region ({case.words(message)}): set {case.caller.region_setting} to that "
        f"of {case.service}",
    )


def _known_refusal(case: Case, error: ClientError, kind: str, message: str) -> Failure | None:
    """Codes that AWS's services use."""
    caller, said = case.caller, case.words(f"{kind}: {message}" if message else kind)
    if kind in _THROTTLED:
        return Failure(
            "throttled", f"{case.where} throttles the calls ({kind}), even after waiting: {case.api.throttled}"
        )
    if error.operation_name in _ROLE_CALLS:
        return _role_refused(case, error.operation_name, kind, message)
    if error.operation_name == "GetRoleCredentials":
        return wrong_credentials(
            f"AWS SSO gives the profile {caller.profile_with(*SSO_SETTINGS)} no credentials ({said}): check its "
            "sso_account_id and sso_role_name"
        )
    known = (
        (
            _KEYS_REFUSED,
            "wrong-credentials",
            f"{caller.keys} are not accepted ({kind}): check them, and that they are meant for {case.where}",
        ),
        (_KEYS_EXPIRED, "wrong-credentials", f"the session of {caller.keys} has expired ({kind}): {caller.renewal}"),
        (_DENIED, "no-permission", f"{caller.keys} lack a permission ({said}): {case.api.permission}"),
        (_OVER_LIMIT, "over-limit", f"a limit of the account is reached ({said}): {case.api.over_limit}"),
        (("ResourceNotFoundException",), "not-found", f"{case.where} {case.api.missing}"),
        (_BAD_INPUT, "bad-input", f"{case.where} rejects the request ({said})"),
    )
    return next((Failure(code, sentence) for kinds, code, sentence in known if kind in kinds), None)


def _role_refused(case: Case, operation: str, kind: str, message: str) -> Failure:
    """A role that cannot be assumed: because of its own policy, or of the keys that assume it."""
    caller = case.caller
    role, profile = _role(caller, message)
    who = f"the role of the profile {profile}" if profile else f"the role {role}"
    said = case.words(f"{kind}: {message}" if message else kind)
    if operation == "AssumeRoleWithWebIdentity":
        return wrong_credentials(
            f"AWS STS refuses {who} ({said}): check the web identity token and the trust policy of {role}"
        )
    source = caller.profiles.get(profile, {}).get("source_profile", "")
    keys = f"the keys of the profile {source}" if source else "the keys that assume it"
    if kind in (*_KEYS_REFUSED, *_KEYS_EXPIRED):
        return wrong_credentials(f"AWS STS refuses {who} ({said}): check {keys}")
    return wrong_credentials(
        f"AWS STS refuses {who} ({said}): allow it in the policy of {keys} and in the trust policy of {role}"
    )


def _role(caller: CallerConfig, message: str) -> tuple[str, str]:
    """The role to be assumed, and the profile that has it; no profile if the environment names the role."""
    if caller.environment.get("AWS_ROLE_ARN") and caller.environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return caller.environment["AWS_ROLE_ARN"], ""
    roles = {
        name: str(caller.profiles[name]["role_arn"]) for name in caller.chain() if "role_arn" in caller.profiles[name]
    }
    named = {name: role for name, role in roles.items() if role in message} or roles
    return next(((role, name) for name, role in named.items()), ("its role_arn", caller.profile))


def _plain_status(case: Case, kind: str, status: int, message: str) -> Failure | None:
    """A response without such a code: it came from a gateway, an HTTP proxy, or another kind of service."""
    if kind in ("401", "403"):
        return wrong_credentials(
            f"{case.service} refuses {case.caller.keys} (HTTP status {kind}): check them, and that they are meant for "
            "it"
        )
    if status >= 500:
        return Failure("control-api", f"{case.service} has failed (HTTP status {status}): try again later")
    if kind.isdigit():
        setting = case.endpoint_setting or "AWS_REGION"
        return Failure(
            "control-api",
            f"{case.service} answers with HTTP status {kind}, unlike {case.api.title}: check {setting}, and the HTTP "
            "proxy",
        )
    return None
