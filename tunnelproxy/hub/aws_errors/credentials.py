# SPDX-License-Identifier: Apache-2.0
"""Credentials that cannot be found, have expired, or are unusable."""

from __future__ import annotations

import difflib
import shlex
import sys

from .caller_config import CONTAINER_VARIABLES, SSO_SETTINGS, config_file
from .case import Case, Failure, wrong_credentials
from .configuration import SELF_HOSTED, bad_setting

__all__ = [
    "container_failed",
    "instance_metadata_failed",
    "login_failed",
    "mfa_code_needed",
    "never_logged_in",
    "no_credentials",
    "no_such_profile",
    "not_retrieved",
    "package_missing",
    "partial_credentials",
    "process_failed",
    "profile_not_valid",
    "sso_session_over",
    "unusable_credentials",
]


_SOURCES = {
    "Ec2InstanceMetadata": "give this instance a role, and unset AWS_EC2_METADATA_DISABLED, or choose another profile",
    "EcsContainer": "give this container a role (AWS_CONTAINER_CREDENTIALS_FULL_URI), or choose another profile",
    "Environment": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or choose another profile",
}
_MOST_STDERR = 200


def no_such_profile(case: Case) -> Failure:
    """``ProfileNotFound``."""
    caller, name = case.caller, str(case.kwargs.get("profile", ""))
    if not name:
        return wrong_credentials(f"{caller.variable} is empty: unset it, or set it to the name of a profile")
    near = difflib.get_close_matches(name, caller.profiles, 1)
    other = f"{shlex.quote(near[0])}, or another" if near else "one"
    return wrong_credentials(
        f"there is no profile {case.words(name)} in {caller.files}: set {caller.variable} to {other} that "
        "`aws configure list-profiles` shows"
    )


def no_credentials(case: Case) -> Failure:
    """``NoCredentialsError``."""
    caller = case.caller
    if caller.named or caller.chain():
        missing = f"the profile {caller.profile} has no credentials: set {caller.variable} to another"
    else:
        missing = "there are no AWS credentials: set AWS_PROFILE"
    return wrong_credentials(f"{missing}, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; {SELF_HOSTED}")


def partial_credentials(case: Case) -> Failure:
    """``PartialCredentialsError``: one half of a key pair is missing."""
    provider, missing = str(case.kwargs.get("provider")), str(case.kwargs.get("cred_var")).strip("'")
    caller = case.caller
    if provider in ("env", "explicit"):
        return wrong_credentials(f"the AWS keys in the environment are not complete: set {missing.upper()} too")
    if provider == "assume-role":
        profile = caller.profile_with("role_arn")
        return wrong_credentials(
            f"the profile {profile} has a role_arn, but no {missing}: add one to {config_file(caller.environment)}"
        )
    profile = caller.profile_with("aws_access_key_id", "aws_secret_access_key")
    return wrong_credentials(f"the profile {profile} has no {missing}: add it in {caller.files}")


def never_logged_in(case: Case) -> Failure:
    """``SSOTokenLoadError``: there is no cached SSO session."""
    profile = case.caller.profile_with(*SSO_SETTINGS)
    return wrong_credentials(f"the profile {profile} has no SSO session: {case.caller.sso_login}")


def sso_session_over(case: Case) -> Failure:
    """The SSO session has expired."""
    profile = case.caller.profile_with(*SSO_SETTINGS)
    return wrong_credentials(f"the SSO session of the profile {profile} has expired: {case.caller.sso_login}")


def login_failed(case: Case) -> Failure:
    """``LoginError``: the session of ``aws login`` cannot be used."""
    profile = case.caller.profile_with("login_session")
    return wrong_credentials(
        f"the login session of the profile {profile} cannot be used ({case.words(case.error)}): {case.caller.login}"
    )


def package_missing(case: Case) -> Failure:
    """``MissingDependencyException``: these credentials need another package."""
    if not case.caller.setting("login_session"):
        return bad_setting(case)
    profile = case.caller.profile_with("login_session")
    return wrong_credentials(
        f"the profile {profile} has the credentials of `aws login`, which botocore uses with awscrt only: "
        f"run `{sys.executable} -m pip install 'botocore[crt]'`"
    )


def mfa_code_needed(case: Case) -> Failure:
    """A role needs an MFA code, which a process without a terminal cannot ask for."""
    caller = case.caller
    return wrong_credentials(
        f"the role of the profile {caller.profile_with('mfa_serial')} needs an MFA code, and there is no terminal to "
        f"enter it on: run `aws sts get-caller-identity --profile {shlex.quote(caller.profile)}` and enter the code "
        "there, then try again"
    )


def not_retrieved(case: Case) -> Failure:
    """``CredentialRetrievalError``: a program or server that provides credentials failed."""
    provider, said = str(case.kwargs.get("provider")), str(case.kwargs.get("error_msg"))
    if provider == "custom-process":
        return process_failed(case, said)
    if provider == "container-role":
        for prefix in (
            "Error retrieving metadata: ",
            "Received error when attempting to retrieve container metadata: ",
        ):
            said = said.replace(prefix, "")
        return container_failed(case, said)
    if provider in _SOURCES:
        profile = case.caller.profile_with("credential_source")
        return wrong_credentials(
            f"the profile {profile} has credential_source = {provider}, which has no credentials: {_SOURCES[provider]}"
        )
    return unusable_credentials(case)


def process_failed(case: Case, said: object) -> Failure:
    """A ``credential_process`` failed."""
    profile = case.caller.profile_with("credential_process")
    words = case.words(said, _MOST_STDERR)
    return wrong_credentials(
        f"the credential_process of the profile {profile} failed ({words or 'it printed nothing'}): "
        "run it by hand to see why; it must work without a terminal"
    )


def container_failed(case: Case, said: object) -> Failure:
    """The credentials of a container's role cannot be fetched."""
    named = sorted(CONTAINER_VARIABLES & case.caller.environment.keys())
    return wrong_credentials(
        f"the credentials of the container's role cannot be fetched ({case.words(said)}): check "
        f"{' and '.join(named) or 'AWS_CONTAINER_CREDENTIALS_FULL_URI'}, and that the container has a role"
    )


def instance_metadata_failed(case: Case) -> Failure:
    """The credentials of an EC2 instance's role cannot be fetched."""
    return wrong_credentials(
        f"the credentials of this instance's role cannot be fetched ({case.words(case.error)}): check the variables "
        "AWS_EC2_METADATA_*, and that the instance has a role; or set AWS_PROFILE"
    )


def profile_not_valid(case: Case) -> Failure:
    """``InvalidConfigError``: a profile contradicts itself or the environment."""
    if case.caller.environment.get("AWS_WEB_IDENTITY_TOKEN_FILE") and not case.caller.environment.get("AWS_ROLE_ARN"):
        return wrong_credentials("AWS_WEB_IDENTITY_TOKEN_FILE is set, but not AWS_ROLE_ARN: set both, or none")
    return wrong_credentials(
        f"the profile {case.caller.profile} cannot be used ({case.words(case.error)}): correct it in "
        f"{config_file(case.caller.environment)}"
    )


def unusable_credentials(case: Case) -> Failure:
    """Something was found, but not credentials. botocore's message may quote it, so it is left out."""
    caller, error = case.caller, case.error
    over = isinstance(error, RuntimeError) and "expired" in str(error)
    if caller.setting("credential_process") and not caller.environment.get("AWS_ACCESS_KEY_ID"):
        if case.passed("shlex"):
            return process_failed(case, error)
        fault = "credentials that have expired" if over else "something other than credentials"
        return wrong_credentials(
            f"the credential_process of the profile {caller.profile_with('credential_process')} printed {fault}: "
            "run it by hand; it must print a JSON object with Version 1, AccessKeyId and SecretAccessKey"
        )
    if CONTAINER_VARIABLES & caller.environment.keys():
        if isinstance(error, ValueError) and "Unsupported host" in str(error):
            return container_failed(case, error)
        return container_failed(case, "they have expired" if over else "the answer has no credentials")
    fault = "have expired" if over else f"cannot be read ({type(error).__name__})"
    return wrong_credentials(f"{caller.keys} {fault}: {caller.renewal}")
