# SPDX-License-Identifier: GPL-3.0-or-later
"""Single sign-on, and MFA codes.

botocore reads the home folder when it is imported, so each call is made in a separate process.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import time

import pytest

from peers.aws_failures import (
    ACCESS_KEY,
    BOTOCORE,
    KEYS_IN_FILE,
    ROLE,
    SECRET_KEY,
    TOKEN,
    Shell,
    answering,
)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path / "home", monkeypatch)


SSO_SESSION = "[sso-session corp]\nsso_start_url = https://corp.example\nsso_region = eu-central-1\n"
SSO_PROFILE = "sso_session = corp\nsso_account_id = 123456789012\nsso_role_name = ops\n"
OLD_SSO_PROFILE = (
    "sso_start_url = https://corp.example\nsso_region = eu-central-1\nsso_account_id = 123456789012\n"
    "sso_role_name = ops\n"
)
STYLES = pytest.mark.parametrize(
    ("settings", "cached_under"),
    [(SSO_SESSION + "[profile single]\n" + SSO_PROFILE, "corp"), ("[profile single]\n" + OLD_SSO_PROFILE, None)],
    ids=["sso_session", "sso_start_url"],
)


def log_in(shell: Shell, name: str | None, hours: float) -> None:
    """Write the file that ``aws sso login`` writes."""
    cache = shell.home / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    until = datetime.now(timezone.utc) + timedelta(hours=hours)
    token = {"accessToken": TOKEN, "expiresAt": until.strftime("%Y-%m-%dT%H:%M:%SZ")}
    key = hashlib.sha1((name or "https://corp.example").encode()).hexdigest()
    (cache / f"{key}.json").write_text(json.dumps(token))


@STYLES
def test_no_sso_session(shell: Shell, settings: str, cached_under: str | None) -> None:
    shell.config_file.write_text(settings)
    shell.export(AWS_PROFILE="single")
    sentence = "the profile single has no SSO session: run `aws sso login --profile single`"
    assert shell.apart() == ("SSOTokenLoadError", "wrong-credentials", sentence)


@STYLES
def test_an_expired_sso_session(shell: Shell, settings: str, cached_under: str | None) -> None:
    shell.config_file.write_text(settings)
    shell.export(AWS_PROFILE="single")
    log_in(shell, cached_under, hours=-1)
    raised = "TokenRetrievalError" if cached_under else "UnauthorizedSSOTokenError"
    sentence = "the SSO session of the profile single has expired: run `aws sso login --profile single`"
    if not cached_under and BOTOCORE < (1, 40):
        pytest.skip("this botocore asks AWS about an expired SSO session")
    assert shell.apart() == (raised, "wrong-credentials", sentence)


def test_the_profile_whose_login_a_role_needs_is_named(shell: Shell) -> None:
    """`aws sso login` accepts only a profile with single sign-on, not the role's."""
    shell.config_file.write_text(
        f"{SSO_SESSION}[profile single]\n{SSO_PROFILE}[profile staging]\nrole_arn = {ROLE}\nsource_profile = single\n"
    )
    shell.export(AWS_PROFILE="staging")
    sentence = "the profile single has no SSO session: run `aws sso login --profile single`"
    assert shell.apart() == ("SSOTokenLoadError", "wrong-credentials", sentence)


@pytest.mark.parametrize(
    ("status", "kind", "raised", "sentence"),
    [
        (
            401,
            "UnauthorizedException",
            "UnauthorizedSSOTokenError",
            "the SSO session of the profile single has expired: run `aws sso login --profile single`",
        ),
        (
            403,
            "ForbiddenException",
            "ClientError",
            "AWS SSO gives the profile single no credentials (ForbiddenException: No access): check its sso_account_id "
            "and sso_role_name",
        ),
    ],
)
def test_single_sign_on_refuses_credentials(shell: Shell, status: int, kind: str, raised: str, sentence: str) -> None:
    shell.config_file.write_text(f"{SSO_SESSION}[profile single]\n{SSO_PROFILE}")
    log_in(shell, "corp", hours=1)
    with answering(status, '{"message": "No access"}', {"x-amzn-ErrorType": kind}) as portal:
        shell.export(AWS_PROFILE="single", AWS_ENDPOINT_URL_SSO=portal.url)
        assert shell.apart() == (raised, "wrong-credentials", sentence)


@pytest.mark.parametrize(
    ("redirection", "raised"), [("</dev/null", "EOFError"), ("<&-", "AttributeError")], ids=["no input", "closed input"]
)
def test_a_role_that_requires_an_mfa_code(shell: Shell, redirection: str, raised: str) -> None:
    shell.config_file.write_text(
        f"[profile base]\n{KEYS_IN_FILE}[profile ops]\nrole_arn = {ROLE}\nsource_profile = base\n"
        "mfa_serial = arn:aws:iam::123456789012:mfa/me\n"
    )
    shell.export(AWS_PROFILE="ops")
    sentence = (
        "the role of the profile ops needs an MFA code, and there is no terminal to enter it on: run "
        "`aws sts get-caller-identity --profile ops` and enter the code there, then try again"
    )
    assert shell.apart(redirection=redirection) == (raised, "wrong-credentials", sentence)


def test_an_sso_session_that_the_service_reports_as_expired(shell: Shell) -> None:
    shell.config_file.write_text(f"{SSO_SESSION}[profile single]\n{SSO_PROFILE}")
    log_in(shell, "corp", hours=1)
    given = {
        "accessKeyId": ACCESS_KEY,
        "secretAccessKey": SECRET_KEY,
        "sessionToken": TOKEN,
        "expiration": (time() + 3600) * 1000,
    }
    refusal = json.dumps({"__type": "ExpiredTokenException"})
    with answering(200, json.dumps({"roleCredentials": given})) as portal, answering(403, refusal) as service:
        shell.export(
            AWS_PROFILE="single", AWS_ENDPOINT_URL_SSO=portal.url, AWS_ENDPOINT_URL_IOTSECURETUNNELING=service.url
        )
        sentence = (
            "the session of the AWS keys of the profile single has expired (ExpiredTokenException): run `aws sso login "
            "--profile single`"
        )
        assert shell.apart() == ("ClientError", "wrong-credentials", sentence)
