# SPDX-License-Identifier: Apache-2.0
"""One code and one sentence for each way in which a call of AWS's APIs fails.

The hub, the modules and the inventory plugin all report these. A sentence names the profile and the thing at fault,
keeps the words of the program that failed, and ends with the remedy. It never holds a key, a secret or a token.

botocore's errors are told apart by class, a service's by the code in its answer; each have a table. Where a source of
credentials answers nonsense, botocore raises whatever Python does (``KeyError``, ``JSONDecodeError``): these are
recognised by botocore's modules in the traceback, so that errors of this program's own stay visible.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Callable, NamedTuple
from urllib.parse import urlsplit

from botocore.configloader import load_config, raw_config_parse
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

from ..net.certificate_dates import HAS_EXPIRED, NOT_YET_VALID, explain_dates

__all__ = ["APIS", "THROTTLED", "Api", "Failure", "explain"]


class Api(NamedTuple):
    """An API, and what its sentences say.

    Attributes:
        name: botocore's name of it.
        title: what sentences call it.
        permission: what to do about a permission that is lacking.
        throttled: what to do about calls that are throttled.
        over_limit: what to do about a limit of the account.
        missing: what it lacks, and what to do, after its name.
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
            over_limit="close tunnels that nobody needs, or ask for fewer services",
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


def explain(
    error: BaseException,
    *,
    api: str,
    endpoint: str = "",
    region: str = "",
    environment: Mapping[str, str],
    now: float | None = None,
) -> Failure | None:
    """Explain what a call of botocore raised.

    Args:
        error: it, with its traceback.
        api: the API that was called, one of ``APIS``.
        endpoint: the URL that it was called at, where it is known.
        region: the region, where it is known.
        environment: the caller's.
        now: this machine's time, in seconds since the epoch.

    Returns:
        None for an error that neither botocore, the operating system nor the configuration is to blame for.
    """
    case = _Case(
        error=error,
        api=APIS[api],
        endpoint=_origin(getattr(error, "kwargs", {}).get("endpoint_url") or endpoint),
        region=region,
        caller=_Caller.of(environment),
        now=time.time() if now is None else now,
    )
    if isinstance(error, ClientError):
        return _refusal(case, error)
    for cls in type(error).__mro__:
        if cls.__module__ in ("botocore.exceptions", "botocore.parsers") and cls.__name__ in _BY_CLASS:
            return _BY_CLASS[cls.__name__](case)
    return _of_python(case, error)


# --- Whose call it was.

_MOST_WORDS = 400


@dataclass(frozen=True)
class _Caller:
    """The caller's environment and AWS configuration files; these are read again for each error, as they change."""

    environment: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> _Caller:
        profiles: dict[str, dict[str, Any]] = {}
        # What cannot be read is not the failure to explain, or it is, and then it names the file.
        with suppress(BotoCoreError, OSError, ValueError):
            profiles.update(load_config(_config_file(environment))["profiles"])
        with suppress(BotoCoreError, OSError, ValueError):
            for name, settings in raw_config_parse(_credentials_file(environment)).items():
                profiles.setdefault(name, {}).update(settings)
        return cls(environment, profiles)

    @property
    def variable(self) -> str:
        """The environment variable that names the profile, as botocore looks for it."""
        return "AWS_DEFAULT_PROFILE" if "AWS_DEFAULT_PROFILE" in self.environment else "AWS_PROFILE"

    @property
    def named(self) -> str:
        """The profile that the environment names, if any."""
        return self.environment.get(self.variable, "")

    @property
    def profile(self) -> str:
        """The profile in use."""
        return self.named or "default"

    @property
    def files(self) -> str:
        """Where profiles are looked for."""
        return f"{_config_file(self.environment)} and {_credentials_file(self.environment)}"

    def chain(self) -> list[str]:
        """The profile in use, and those that it takes credentials from."""
        names: list[str] = []
        name = self.profile
        while name in self.profiles and name not in names:
            names.append(name)
            name = self.profiles[name].get("source_profile", "")
        return names

    def profile_with(self, *settings: str) -> str:
        """The profile, of those that take part, which has one of these settings; else the one in use."""
        found = (name for name in self.chain() if any(setting in self.profiles[name] for setting in settings))
        return next(found, self.profile)

    def setting(self, name: str) -> str:
        """A setting of a profile that takes part; empty where none has it."""
        return str(self.profiles.get(self.profile_with(name), {}).get(name, ""))

    @property
    def keys(self) -> str:
        """The credentials in use, for a sentence."""
        if self.environment.get("AWS_ACCESS_KEY_ID"):
            return "the AWS keys in AWS_ACCESS_KEY_ID"
        if self.named or "default" in self.profiles:
            return f"the AWS keys of the profile {self.profile}"
        if _CONTAINER_VARIABLES & self.environment.keys():
            return "the AWS keys of the container's role"
        return "the AWS keys"

    @property
    def renewal(self) -> str:
        """What renews credentials that have expired."""
        if self.environment.get("AWS_ACCESS_KEY_ID"):
            return "replace AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or unset them"
        if self.setting("sso_role_name") or self.setting("sso_session"):
            return self.sso_login
        if self.setting("login_session"):
            return self.login
        return "log in again, or renew them"

    @property
    def sso_login(self) -> str:
        """The command that starts an SSO session."""
        return f"run `aws sso login --profile {shlex.quote(self.profile_with(*_SSO_SETTINGS))}`"

    @property
    def login(self) -> str:
        """The command that starts a session of the AWS console's login."""
        return f"run `aws login --profile {shlex.quote(self.profile_with('login_session'))}`"

    @property
    def region_setting(self) -> str:
        """What to set to change the region."""
        set_by = [name for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if self.environment.get(name)]
        if not set_by and self.profiles.get(self.profile, {}).get("region"):
            return f"the region of the profile {self.profile} ({self.set_region})"
        return set_by[0] if set_by else "AWS_REGION"

    @property
    def set_region(self) -> str:
        """The command that sets the region of the profile in use."""
        return f"`aws configure set region REGION --profile {shlex.quote(self.profile)}`"

    def words(self, text: str, limit: int = _MOST_WORDS) -> str:
        """The words of another program: on one line, printable, no longer than the limit, and without secrets."""
        for name in _SECRET_VARIABLES:
            secret = self.environment.get(name, "")
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***")
        text = _SECRETS.sub(lambda found: found["arn"] or "***", _COLOURS.sub("", text))
        text = "".join(char if char.isprintable() else " " for char in text)
        text = " ".join(text.split()).rstrip(". ")
        # Programs say last what it was.
        return text if len(text) <= limit else "…" + text[1 - limit :]


_SSO_SETTINGS = ("sso_session", "sso_start_url", "sso_role_name", "sso_account_id")
_CONTAINER_VARIABLES = frozenset({"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"})
_SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_SHORTEST_SECRET = 8
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SECRETS = re.compile(
    r"(?P<arn>\barn:aws[^\s,;]*)"  # names of things, which are none, but may look like a key
    r"|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}"  # access key IDs
    r"|\beyJ[\w-]{10,}(?:\.[\w-]*)*"  # JSON web tokens
    r"|(?<=://)[^\s/@]+@"  # who logs in to a URL
    # Secret access keys and session tokens: long, and of letters of both cases and digits.
    r"|(?<![A-Za-z0-9/+=])(?=[a-z0-9/+=]*[A-Z])(?=[A-Z0-9/+=]*[a-z])(?=[A-Za-z/+=]*[0-9])[A-Za-z0-9/+=]{40,}"
)


def _config_file(environment: Mapping[str, str]) -> str:
    return _expanded(environment.get("AWS_CONFIG_FILE") or "~/.aws/config", environment)


def _credentials_file(environment: Mapping[str, str]) -> str:
    return _expanded(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", environment)


def _expanded(path: str, environment: Mapping[str, str]) -> str:
    home = environment.get("HOME")
    return home + path[1:] if home and path.startswith("~/") else os.path.expanduser(path)


# --- What failed.


@dataclass(frozen=True)
class _Case:
    """A failure to explain."""

    error: BaseException
    api: Api
    endpoint: str
    region: str
    caller: _Caller
    now: float

    @property
    def service(self) -> str:
        """What was called: by its URL, else by its name."""
        of_credentials = _AWS_SERVICES.get(getattr(self.error, "operation_name", ""))
        return of_credentials or self.endpoint or self.api.title

    @property
    def where(self) -> str:
        """What was called, and in which region."""
        return f"{self.service} (region {self.region})" if self.region else self.service

    @property
    def endpoint_setting(self) -> str:
        """The environment variable that names the endpoint; empty where none does, or it is not that one's fault."""
        if self.in_credentials:
            return ""
        for name in (f"AWS_ENDPOINT_URL_{self.api.name.upper()}", "AWS_ENDPOINT_URL"):
            if self.caller.environment.get(name):
                return name
        return ""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """What botocore says of its error."""
        found: Mapping[str, Any] = getattr(self.error, "kwargs", {})
        return found

    def passed(self, *modules: str) -> bool:
        """Whether the error came through one of these modules."""
        return not set(modules).isdisjoint(self._modules())

    @property
    def in_credentials(self) -> bool:
        """Whether it arose while botocore looked for credentials."""
        return self.passed("botocore.credentials", "botocore.tokens")

    def words(self, text: object, limit: int = _MOST_WORDS) -> str:
        return self.caller.words(str(text), limit)

    def _modules(self) -> Iterator[str]:
        trace = self.error.__traceback__
        while trace is not None:
            yield trace.tb_frame.f_globals.get("__name__", "")
            trace = trace.tb_next


# Those that credentials come from. Their calls are botocore's own, and the endpoint is not known.
_AWS_SERVICES = {
    "AssumeRole": "AWS STS",
    "AssumeRoleWithWebIdentity": "AWS STS",
    "GetCallerIdentity": "AWS STS",
    "GetRoleCredentials": "AWS SSO",
}


def _origin(url: str) -> str:
    """The scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.scheme and parts.netloc else url


def _credentials(sentence: str) -> Failure:
    return Failure("wrong-credentials", sentence)


# --- Credentials that cannot be found.


def _no_such_profile(case: _Case) -> Failure:
    caller, name = case.caller, str(case.kwargs.get("profile", ""))
    if not name:
        return _credentials(f"{caller.variable} is empty: unset it, or set it to the name of a profile")
    near = difflib.get_close_matches(name, caller.profiles, 1)
    other = f"{shlex.quote(near[0])}, or another" if near else "one"
    return _credentials(
        f"there is no profile {case.words(name)} in {caller.files}: set {caller.variable} to {other} that "
        "`aws configure list-profiles` shows"
    )


def _no_credentials(case: _Case) -> Failure:
    caller = case.caller
    if caller.named or caller.chain():
        missing = f"the profile {caller.profile} has no credentials: set {caller.variable} to another"
    else:
        missing = "there are no AWS credentials: set AWS_PROFILE"
    return _credentials(f"{missing}, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; {_OWN_SERVICE}")


_OWN_SERVICE = 'for a service of your own, run `eval "$(tunnelproxy service env)"`'


def _partial_credentials(case: _Case) -> Failure:
    provider, missing = str(case.kwargs.get("provider")), str(case.kwargs.get("cred_var")).strip("'")
    caller = case.caller
    if provider in ("env", "explicit"):
        return _credentials(f"the AWS keys in the environment are not complete: set {missing.upper()} too")
    if provider == "assume-role":
        profile = caller.profile_with("role_arn")
        return _credentials(
            f"the profile {profile} has a role_arn, but no {missing}: add one to {_config_file(caller.environment)}"
        )
    profile = caller.profile_with("aws_access_key_id", "aws_secret_access_key")
    return _credentials(f"the profile {profile} has no {missing}: add it in {caller.files}")


def _never_logged_in(case: _Case) -> Failure:
    profile = case.caller.profile_with(*_SSO_SETTINGS)
    return _credentials(f"the profile {profile} has no SSO session: {case.caller.sso_login}")


def _sso_session_over(case: _Case) -> Failure:
    profile = case.caller.profile_with(*_SSO_SETTINGS)
    return _credentials(f"the SSO session of the profile {profile} has expired: {case.caller.sso_login}")


def _login_failed(case: _Case) -> Failure:
    profile = case.caller.profile_with("login_session")
    return _credentials(
        f"the login session of the profile {profile} cannot be used ({case.words(case.error)}): {case.caller.login}"
    )


def _package_missing(case: _Case) -> Failure:
    if not case.caller.setting("login_session"):
        return _bad_setting(case)
    profile = case.caller.profile_with("login_session")
    return _credentials(
        f"the profile {profile} has the credentials of `aws login`, which botocore uses with awscrt only: "
        f"run `{sys.executable} -m pip install 'botocore[crt]'`"
    )


def _mfa_code_wanted(case: _Case) -> Failure:
    caller = case.caller
    return _credentials(
        f"the role of the profile {caller.profile_with('mfa_serial')} wants an MFA code, and there is no terminal to "
        f"ask for it on: run `aws sts get-caller-identity --profile {shlex.quote(caller.profile)}` and enter the code "
        "there, then try again"
    )


def _not_retrieved(case: _Case) -> Failure:
    """CredentialRetrievalError: a program or a server that credentials come from says no."""
    provider, said = str(case.kwargs.get("provider")), str(case.kwargs.get("error_msg"))
    if provider == "custom-process":
        return _process_failed(case, said)
    if provider == "container-role":
        for prefix in (
            "Error retrieving metadata: ",
            "Received error when attempting to retrieve container metadata: ",
        ):
            said = said.replace(prefix, "")
        return _container_failed(case, said)
    if provider in _SOURCES:
        profile = case.caller.profile_with("credential_source")
        return _credentials(
            f"the profile {profile} has credential_source = {provider}, which has no credentials: {_SOURCES[provider]}"
        )
    return _unusable_credentials(case)


_SOURCES = {
    "Ec2InstanceMetadata": "give this instance a role, and unset AWS_EC2_METADATA_DISABLED, or choose another profile",
    "EcsContainer": "give this container a role (AWS_CONTAINER_CREDENTIALS_FULL_URI), or choose another profile",
    "Environment": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or choose another profile",
}


def _process_failed(case: _Case, said: object) -> Failure:
    profile = case.caller.profile_with("credential_process")
    words = case.words(said, _MOST_STDERR)
    return _credentials(
        f"the credential_process of the profile {profile} failed ({words or 'without a word'}): "
        "run it by hand to see why; it must work without a terminal"
    )


_MOST_STDERR = 200


def _container_failed(case: _Case, said: object) -> Failure:
    named = sorted(_CONTAINER_VARIABLES & case.caller.environment.keys())
    return _credentials(
        f"the credentials of the container's role cannot be fetched ({case.words(said)}): check "
        f"{' and '.join(named) or 'AWS_CONTAINER_CREDENTIALS_FULL_URI'}, and that the container has a role"
    )


def _instance_metadata_failed(case: _Case) -> Failure:
    return _credentials(
        f"the credentials of this instance's role cannot be fetched ({case.words(case.error)}): check the variables "
        "AWS_EC2_METADATA_*, and that the instance has a role; or set AWS_PROFILE"
    )


def _profile_not_valid(case: _Case) -> Failure:
    if case.caller.environment.get("AWS_WEB_IDENTITY_TOKEN_FILE") and not case.caller.environment.get("AWS_ROLE_ARN"):
        return _credentials("AWS_WEB_IDENTITY_TOKEN_FILE is set, but not AWS_ROLE_ARN: set both, or none")
    return _credentials(
        f"the profile {case.caller.profile} cannot be used ({case.words(case.error)}): correct it in "
        f"{_config_file(case.caller.environment)}"
    )


def _unusable_credentials(case: _Case) -> Failure:
    """What was found is nonsense. botocore's words may quote it, so that they are not kept."""
    caller, error = case.caller, case.error
    over = isinstance(error, RuntimeError) and "expired" in str(error)
    if caller.setting("credential_process") and not caller.environment.get("AWS_ACCESS_KEY_ID"):
        if case.passed("shlex"):
            return _process_failed(case, error)
        fault = "credentials that have expired" if over else "something else than credentials"
        return _credentials(
            f"the credential_process of the profile {caller.profile_with('credential_process')} printed {fault}: "
            "run it by hand; it must print a JSON object with Version 1, AccessKeyId and SecretAccessKey"
        )
    if _CONTAINER_VARIABLES & caller.environment.keys():
        if isinstance(error, ValueError) and "Unsupported host" in str(error):
            return _container_failed(case, error)
        return _container_failed(case, "they have expired" if over else "the answer has no credentials")
    fault = "have expired" if over else f"cannot be read ({type(error).__name__})"
    return _credentials(f"{caller.keys} {fault}: {caller.renewal}")


# --- Regions and settings.


def _no_region(case: _Case) -> Failure:
    return Failure(
        "wrong-region",
        f"no AWS region is set: set AWS_REGION, or the region of the profile {case.caller.profile} "
        f"({case.caller.set_region}); {_OWN_SERVICE}",
    )


def _bad_region(case: _Case) -> Failure:
    name = case.kwargs.get("region_name", case.region)
    return Failure(
        "wrong-region",
        f"{case.words(repr(name))} is not the name of an AWS region: set {case.caller.region_setting} to one such as "
        "eu-central-1",
    )


def _bad_config_file(case: _Case) -> Failure:
    # Not in the parser's words: they quote the line, and it may be one with a secret.
    fault = case.kwargs.get("error")
    lines = [getattr(fault, "lineno", None), *(line for line, _ in getattr(fault, "errors", ()))]
    line = next((f", line {number}," for number in lines if number), "")
    return Failure("bad-input", f"{case.kwargs.get('path')}{line} cannot be parsed: correct it")


def _bad_parameters(case: _Case) -> Failure:
    said = case.words(case.kwargs.get("report", case.error))
    return Failure("bad-input", f"{case.api.title} does not take such a request: {said}")


def _bad_setting(case: _Case) -> Failure:
    return Failure(
        "bad-input",
        f"the AWS configuration is not valid ({case.words(case.error)}): check the AWS_ variables, and the profile "
        f"{case.caller.profile} in {_config_file(case.caller.environment)}",
    )


def _bad_endpoint(case: _Case) -> Failure:
    url = str(case.error).partition(": ")[2]
    setting = case.endpoint_setting or "AWS_ENDPOINT_URL"
    return Failure("bad-input", f"{case.words(repr(url))} is not a URL: set {setting} to one such as https://HOST:8443")


# --- Networks.

# urllib3 2 says "Failed to resolve"; urllib3 1 has getaddrinfo's own words, of which only the number is not translated.
_NAME_NOT_KNOWN = re.compile(r"resolve|\[Errno -[2-5]\]")


def _not_reached(case: _Case) -> Failure:
    reason = case.words(_reason(case.kwargs.get("error")) or case.error)
    if case.in_credentials:
        return Failure(
            "control-api",
            f"{case.service}, where the profile {case.caller.profile} gets its credentials, cannot be reached "
            f"({reason}): check this machine's network",
        )
    if case.endpoint_setting:
        check = f"check that the service runs there, {case.endpoint_setting}, and this machine's network"
    elif _NAME_NOT_KNOWN.search(str(case.kwargs.get("error"))) and _is_unknown(case.region):
        return _bad_region(case)
    else:
        check = "check this machine's network and AWS_REGION"
    return Failure("control-api", f"{case.service} cannot be reached ({reason}): {check}")


def _is_unknown(region: str) -> bool:
    """Whether no region of AWS has this name, as far as botocore knows."""
    session = Session()
    known = {
        name
        for partition in session.get_available_partitions()
        for service in ("iot", "ec2")
        for name in session.get_available_regions(service, partition)
    }
    return bool(region) and region not in known


def _proxy_not_reached(case: _Case) -> Failure:
    error = case.kwargs.get("error")
    proxy = _origin(str(case.kwargs.get("proxy_url")))
    scheme = "http" if case.endpoint.startswith("http:") else "https"
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    name = next((name for name in names if case.caller.environment.get(name)), names[0])
    return Failure(
        "control-api",
        f"the HTTP proxy {proxy} does not connect to {case.service} ({case.words(_reason(error) or error)}): "
        f"check {name} and no_proxy",
    )


def _not_trusted(case: _Case) -> Failure:
    cause = case.kwargs.get("error")
    said, reason = str(cause), case.words(_reason(cause))
    if isinstance(_innermost(cause), _FILE_ERRORS) or "[X509" in said or "PEM" in said:
        return _bad_bundle(case, reason)
    setting = case.endpoint_setting or "AWS_REGION"
    for words, code in _OF_DATES:
        if words in said:
            return Failure("not-trusted", f"the certificate of {case.service} {explain_dates(code, now=case.now)}")
    for words, sentence in _CERTIFICATE_FAULTS:
        if words in said:
            return Failure("not-trusted", sentence.format(service=case.service, setting=setting))
    return Failure(
        "control-api", f"{case.service} does not speak TLS as it should ({reason}): check {setting} and the HTTP proxy"
    )


_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_OF_DATES = (("certificate has expired", HAS_EXPIRED), ("not yet valid", NOT_YET_VALID))
_CERTIFICATE_FAULTS = (
    ("doesn't match", "the certificate of {service} is for another name: check {setting}"),
    ("mismatch", "the certificate of {service} is for another name: check {setting}"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the certificate of {service} is not trusted here: set AWS_CA_BUNDLE to its authority's certificate",
    ),
)


def _bad_bundle(case: _Case, reason: str) -> Failure:
    environment = case.caller.environment
    bundle = (
        environment.get("AWS_CA_BUNDLE") or case.caller.setting("ca_bundle") or environment.get("REQUESTS_CA_BUNDLE")
    )
    return Failure(
        "bad-input",
        f"the CA bundle {bundle or 'of botocore'} cannot be used ({reason}): set AWS_CA_BUNDLE to a file of PEM "
        "certificates",
    )


def _innermost(error: object) -> object:
    """What the errors of urllib3 wrap."""
    while isinstance(error, BaseException):
        wrapped = [each for each in (*error.args, getattr(error, "reason", None)) if isinstance(each, BaseException)]
        if not wrapped:
            break
        error = wrapped[0]
    return error


def _reason(error: object) -> str:
    """The operating system's words where there are some, else those of the innermost error."""
    inner = _innermost(error)
    seen: list[object] = []
    cause = inner
    while isinstance(cause, BaseException) and cause not in seen:
        if getattr(cause, "strerror", None):
            return str(cause.strerror)  # type: ignore[attr-defined]
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    # "AWSHTTPConnection(host='HOST', port=443): Read timed out."
    return str(inner).rpartition("): ")[2]


def _no_answer(case: _Case) -> Failure:
    said = case.words(_reason(case.kwargs.get("error")) or case.error)
    check = f"check {case.endpoint_setting}" if case.endpoint_setting else "check this machine's network"
    return Failure("control-api", f"{case.service} gives no proper answer ({said}): {check}, or try again later")


def _failed(case: _Case) -> Failure:
    return Failure("control-api", f"{case.api.title} cannot be called ({case.words(case.error)})")


_BY_CLASS: Mapping[str, Callable[[_Case], Failure]] = {
    # Credentials
    "ProfileNotFound": _no_such_profile,
    "NoCredentialsError": _no_credentials,
    "PartialCredentialsError": _partial_credentials,
    "CredentialRetrievalError": _not_retrieved,
    "SSOTokenLoadError": _never_logged_in,
    "UnauthorizedSSOTokenError": _sso_session_over,
    "TokenRetrievalError": _sso_session_over,
    "SSOError": _sso_session_over,
    "LoginError": _login_failed,
    "MissingDependencyException": _package_missing,
    "RefreshWithMFAUnsupportedError": _mfa_code_wanted,
    "MetadataRetrievalError": _instance_metadata_failed,
    "InvalidIMDSEndpointError": _instance_metadata_failed,
    "InvalidIMDSEndpointModeError": _instance_metadata_failed,
    "InvalidConfigError": _profile_not_valid,
    "UnknownCredentialError": _profile_not_valid,
    # Region
    "NoRegionError": _no_region,
    "InvalidRegionError": _bad_region,
    "UnknownRegionError": _bad_region,
    # Input
    "ConfigParseError": _bad_config_file,
    "ConfigNotFound": _bad_setting,
    "ParamValidationError": _bad_parameters,
    "ValidationError": _bad_parameters,
    "MissingParametersError": _bad_parameters,
    "BaseEndpointResolverError": _bad_setting,
    "EndpointProviderError": _bad_setting,
    "InvalidEndpointConfigurationError": _bad_setting,
    "InvalidDefaultsMode": _bad_setting,
    "InvalidRetryConfigurationError": _bad_setting,
    "InvalidProxiesConfigError": _bad_setting,
    # Network
    "SSLError": _not_trusted,
    "ProxyConnectionError": _proxy_not_reached,
    "ConnectionError": _not_reached,
    "ReadTimeoutError": _no_answer,
    "ConnectionClosedError": _no_answer,
    "ResponseStreamingError": _no_answer,
    "ResponseParserError": _no_answer,
    "IncompleteReadError": _no_answer,
    "HTTPClientError": _not_reached,
    # What a later botocore may add
    "BotoCoreError": _failed,
}


# --- What is not of botocore's own kind.


def _of_python(case: _Case, error: BaseException) -> Failure | None:
    asked = isinstance(error, Exception) and case.passed("getpass")
    if asked or (isinstance(error, EOFError) and case.in_credentials):
        # Only for such a code is anybody asked. getpass does not foresee that standard input is closed.
        return _mfa_code_wanted(case)
    if isinstance(error, OSError):
        return _of_system(case, error)
    if case.in_credentials and not case.passed("botocore.configprovider"):
        nonsense = isinstance(error, (ValueError, LookupError, TypeError, AttributeError, RuntimeError))
        return _unusable_credentials(case) if nonsense else None
    if isinstance(error, ValueError) and case.passed("botocore.session", "botocore.client", "botocore.endpoint"):
        return _bad_endpoint(case) if str(error).startswith("Invalid endpoint: ") else _bad_setting(case)
    return None


def _of_system(case: _Case, error: OSError) -> Failure:
    caller, path = case.caller, str(error.filename or "")
    reason = case.words(error.strerror or error) or type(error).__name__
    if path and path == caller.environment.get("AWS_WEB_IDENTITY_TOKEN_FILE", ""):
        return _credentials(
            f"the web identity token file {path} cannot be read ({reason}): check AWS_WEB_IDENTITY_TOKEN_FILE"
        )
    if path and path == caller.setting("web_identity_token_file"):
        profile = caller.profile_with("web_identity_token_file")
        return _credentials(
            f"the web identity token file {path} of the profile {profile} cannot be read ({reason}): check its "
            "web_identity_token_file"
        )
    if path and path == caller.environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", ""):
        return _container_failed(case, f"{path}: {reason}")
    if case.in_credentials and path and path in caller.setting("credential_process"):
        return _process_failed(case, f"{path}: {reason}")
    if path:
        return Failure("bad-input", f"{path} cannot be used ({reason}): check the AWS_ variables")
    return Failure("control-api", f"{case.service} cannot be reached ({reason}): check this machine's network")


# --- What services answer.


def _refusal(case: _Case, error: ClientError) -> Failure:
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
THROTTLED = (
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


def _wrong_clock(case: _Case, error: ClientError, kind: str, message: str) -> Failure | None:
    """A clock that is wrong makes keys look wrong or expired; what has been accepted is not the clock's fault."""
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


def _skew(case: _Case, error: ClientError) -> float:
    """By how many seconds this machine's clock is ahead of the service's, as far as its answer tells."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return case.now - parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0


def _duration(seconds: float) -> str:
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"


def _wrong_scope(case: _Case, message: str) -> Failure | None:
    if _WRONG_REGION not in message:
        return None
    return Failure(
        "wrong-region",
        f"the AWS keys are used for the wrong region ({case.words(message)}): set {case.caller.region_setting} to that "
        f"of {case.service}",
    )


def _known_refusal(case: _Case, error: ClientError, kind: str, message: str) -> Failure | None:
    """What a service says by name."""
    caller, said = case.caller, case.words(f"{kind}: {message}" if message else kind)
    if kind in THROTTLED:
        return Failure(
            "throttled", f"{case.where} throttles the calls ({kind}), even after waiting: {case.api.throttled}"
        )
    if error.operation_name in _ROLE_CALLS:
        return _role_refused(case, error.operation_name, kind, message)
    if error.operation_name == "GetRoleCredentials":
        return _credentials(
            f"AWS SSO gives the profile {caller.profile_with(*_SSO_SETTINGS)} no credentials ({said}): check its "
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


def _role_refused(case: _Case, operation: str, kind: str, message: str) -> Failure:
    """A role that AWS STS does not let be assumed: for its own sake, or for that of the keys that assume it."""
    caller = case.caller
    role, profile = _role(caller, message)
    who = f"the role of the profile {profile}" if profile else f"the role {role}"
    said = case.words(f"{kind}: {message}" if message else kind)
    if operation == "AssumeRoleWithWebIdentity":
        return _credentials(
            f"AWS STS refuses {who} ({said}): check the web identity token and the trust policy of {role}"
        )
    source = caller.profiles.get(profile, {}).get("source_profile", "")
    keys = f"the keys of the profile {source}" if source else "the keys that assume it"
    if kind in (*_KEYS_REFUSED, *_KEYS_EXPIRED):
        return _credentials(f"AWS STS refuses {who} ({said}): check {keys}")
    return _credentials(
        f"AWS STS refuses {who} ({said}): allow it in the policy of {keys} and in the trust policy of {role}"
    )


def _role(caller: _Caller, message: str) -> tuple[str, str]:
    """The role that was to be assumed, and the profile that has it; no profile where the environment names the role."""
    if caller.environment.get("AWS_ROLE_ARN") and caller.environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return caller.environment["AWS_ROLE_ARN"], ""
    roles = {
        name: str(caller.profiles[name]["role_arn"]) for name in caller.chain() if "role_arn" in caller.profiles[name]
    }
    named = {name: role for name, role in roles.items() if role in message} or roles
    return next(((role, name) for name, role in named.items()), ("its role_arn", caller.profile))


def _plain_status(case: _Case, kind: str, status: int, message: str) -> Failure | None:
    """An answer without a name: it came from something between, or from no such service."""
    if kind in ("401", "403"):
        return _credentials(
            f"{case.service} refuses {case.caller.keys} (HTTP status {kind}): check them, and that they are meant for "
            "it"
        )
    if status >= 500:
        return Failure("control-api", f"{case.service} has failed (HTTP status {status}): try again later")
    if kind.isdigit():
        setting = case.endpoint_setting or "AWS_REGION"
        return Failure(
            "control-api",
            f"{case.service} answers with HTTP status {kind}, unlike {case.api.title}: check {setting}, and the web "
            "proxy",
        )
    return None
