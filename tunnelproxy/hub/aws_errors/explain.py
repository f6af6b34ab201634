# SPDX-License-Identifier: Apache-2.0
"""The choice of the sentence that explains an error.

botocore's errors are distinguished by class; :mod:`.answers` distinguishes those of a service by the code in its
response. If a source of credentials returns something unusable, botocore lets Python's own exceptions pass
(``KeyError``, ``JSONDecodeError``): these are recognised by botocore's modules in the traceback, so that errors of this
program itself stay visible.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Callable

from botocore.exceptions import ClientError

from .answers import explain_answer
from .caller_config import CallerConfig
from .case import APIS, Case, Failure, origin, wrong_credentials
from .configuration import bad_config_file, bad_endpoint, bad_parameters, bad_region, bad_setting, no_region
from .credentials import (
    container_failed,
    instance_metadata_failed,
    login_failed,
    mfa_code_needed,
    never_logged_in,
    no_credentials,
    no_such_profile,
    not_retrieved,
    package_missing,
    partial_credentials,
    process_failed,
    profile_not_valid,
    sso_session_over,
    unusable_credentials,
)
from .network import no_answer, not_reached, not_trusted, proxy_not_reached

__all__ = ["explain"]


def explain(
    error: BaseException,
    *,
    api: str,
    endpoint: str = "",
    region: str = "",
    environment: Mapping[str, str],
    now: float | None = None,
) -> Failure | None:
    """Explain an exception that a call through botocore raised.

    Args:
        error: the exception, with its traceback.
        api: the API that was called, one of ``APIS``.
        endpoint: the URL that it was called at, if known.
        region: the region, if known.
        environment: the caller's.
        now: this machine's time, in seconds since the epoch.

    Returns:
        The failure; None for an error that does not come from botocore, the operating system or the configuration.
    """
    case = Case(
        error=error,
        api=APIS[api],
        endpoint=origin(getattr(error, "kwargs", {}).get("endpoint_url") or endpoint),
        region=region,
        caller=CallerConfig.of(environment),
        now=time.time() if now is None else now,
    )
    if isinstance(error, ClientError):
        return explain_answer(case, error)
    for cls in type(error).__mro__:
        if cls.__module__ in ("botocore.exceptions", "botocore.parsers") and cls.__name__ in _BY_CLASS:
            return _BY_CLASS[cls.__name__](case)
    return _of_python(case, error)


def _failed(case: Case) -> Failure:
    return Failure("control-api", f"{case.api.title} cannot be called ({case.words(case.error)})")


_BY_CLASS: Mapping[str, Callable[[Case], Failure]] = {
    # Credentials
    "ProfileNotFound": no_such_profile,
    "NoCredentialsError": no_credentials,
    "PartialCredentialsError": partial_credentials,
    "CredentialRetrievalError": not_retrieved,
    "SSOTokenLoadError": never_logged_in,
    "UnauthorizedSSOTokenError": sso_session_over,
    "TokenRetrievalError": sso_session_over,
    "SSOError": sso_session_over,
    "LoginError": login_failed,
    "MissingDependencyException": package_missing,
    "RefreshWithMFAUnsupportedError": mfa_code_needed,
    "MetadataRetrievalError": instance_metadata_failed,
    "InvalidIMDSEndpointError": instance_metadata_failed,
    "InvalidIMDSEndpointModeError": instance_metadata_failed,
    "InvalidConfigError": profile_not_valid,
    "UnknownCredentialError": profile_not_valid,
    # Region
    "NoRegionError": no_region,
    "InvalidRegionError": bad_region,
    "UnknownRegionError": bad_region,
    # Input
    "ConfigParseError": bad_config_file,
    "ConfigNotFound": bad_setting,
    "ParamValidationError": bad_parameters,
    "ValidationError": bad_parameters,
    "MissingParametersError": bad_parameters,
    "BaseEndpointResolverError": bad_setting,
    "EndpointProviderError": bad_setting,
    "InvalidEndpointConfigurationError": bad_setting,
    "InvalidDefaultsMode": bad_setting,
    "InvalidRetryConfigurationError": bad_setting,
    "InvalidProxiesConfigError": bad_setting,
    # Network
    "SSLError": not_trusted,
    "ProxyConnectionError": proxy_not_reached,
    "ConnectionError": not_reached,
    "ReadTimeoutError": no_answer,
    "ConnectionClosedError": no_answer,
    "ResponseStreamingError": no_answer,
    "ResponseParserError": no_answer,
    "IncompleteReadError": no_answer,
    "HTTPClientError": not_reached,
    # Errors that later versions of botocore may add
    "BotoCoreError": _failed,
}


def _of_python(case: Case, error: BaseException) -> Failure | None:
    asked = isinstance(error, Exception) and case.passed("getpass")
    if asked or (isinstance(error, EOFError) and case.in_credentials):
        # botocore prompts only for such codes. getpass does not handle a closed standard input.
        return mfa_code_needed(case)
    if isinstance(error, OSError):
        return _of_system(case, error)
    if case.in_credentials and not case.passed("botocore.configprovider"):
        nonsense = isinstance(error, (ValueError, LookupError, TypeError, AttributeError, RuntimeError))
        return unusable_credentials(case) if nonsense else None
    if isinstance(error, ValueError) and case.passed("botocore.session", "botocore.client", "botocore.endpoint"):
        return bad_endpoint(case) if str(error).startswith("Invalid endpoint: ") else bad_setting(case)
    return None


def _of_system(case: Case, error: OSError) -> Failure:
    caller, path = case.caller, str(error.filename or "")
    reason = case.words(error.strerror or error) or type(error).__name__
    if path and path == caller.environment.get("AWS_WEB_IDENTITY_TOKEN_FILE", ""):
        return wrong_credentials(
            f"the web identity token file {path} cannot be read ({reason}): check AWS_WEB_IDENTITY_TOKEN_FILE"
        )
    if path and path == caller.setting("web_identity_token_file"):
        profile = caller.profile_with("web_identity_token_file")
        return wrong_credentials(
            f"the web identity token file {path} of the profile {profile} cannot be read ({reason}): check its "
            "web_identity_token_file"
        )
    if path and path == caller.environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", ""):
        return container_failed(case, f"{path}: {reason}")
    if case.in_credentials and path and path in caller.setting("credential_process"):
        return process_failed(case, f"{path}: {reason}")
    if path:
        return Failure("bad-input", f"{path} cannot be used ({reason}): check the AWS_ variables")
    return Failure("control-api", f"{case.service} cannot be reached ({reason}): check this machine's network")
