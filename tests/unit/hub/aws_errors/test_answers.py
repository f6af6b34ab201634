# SPDX-License-Identifier: GPL-3.0-or-later
"""What services answer, and clocks."""

from __future__ import annotations

from email.utils import formatdate
from time import time

import pytest

from peers.aws_failures import (
    ACCESS_KEY,
    BASE_AND_OPS,
    KEYS,
    KEYS_IN_FILE,
    ROLE,
    TOKEN,
    Shell,
    answered,
    answering,
    sts_error,
)

SSO_USER = "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO/Administrator0Access1For2Everybody3In4All/me"
IN_REGION = "{url} (region eu-central-1)"


@pytest.mark.parametrize(
    ("status", "body", "code", "sentence"),
    [
        pytest.param(
            403,
            {"__type": "UnrecognizedClientException", "message": "The security token is invalid."},
            "wrong-credentials",
            "the AWS keys in AWS_ACCESS_KEY_ID are not accepted (UnrecognizedClientException): check them, and that "
            f"they are meant for {IN_REGION}",
            id="keys of another service",
        ),
        pytest.param(
            403,
            {"__type": "InvalidSignatureException", "message": "does not match the signature you provided."},
            "wrong-credentials",
            "the AWS keys in AWS_ACCESS_KEY_ID are not accepted (InvalidSignatureException): check them, and that they "
            f"are meant for {IN_REGION}",
            id="a secret that is wrong",
        ),
        pytest.param(
            403,
            {"__type": "InvalidSignatureException", "message": "Credential should be scoped to a valid region."},
            "wrong-region",
            "the AWS keys are used for the wrong region (Credential should be scoped to a valid region): set "
            "AWS_REGION to that of {url}",
            id="keys used for another region",
        ),
        pytest.param(
            403,
            {"__type": "ExpiredTokenException", "message": "The security token has expired"},
            "wrong-credentials",
            "the session of the AWS keys in AWS_ACCESS_KEY_ID has expired (ExpiredTokenException): replace "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or unset them",
            id="a session that is over",
        ),
        pytest.param(
            403,
            {"__type": "AccessDeniedException", "message": "User: me is not authorized to perform: iot:ListTunnels"},
            "no-permission",
            "the AWS keys in AWS_ACCESS_KEY_ID lack a permission (AccessDeniedException: User: me is not authorized to "
            "perform: iot:ListTunnels): allow the iot: actions for tunnels in their policy",
            id="a permission that is lacking",
        ),
        pytest.param(
            403,
            {"__type": "AccessDeniedException", "message": f"User: {SSO_USER} may not"},
            "no-permission",
            f"the AWS keys in AWS_ACCESS_KEY_ID lack a permission (AccessDeniedException: User: {SSO_USER} may not): "
            "allow the iot: actions for tunnels in their policy",
            id="a name that looks like a key",
        ),
        pytest.param(
            403,
            "{}",
            "wrong-credentials",
            "{url} refuses the AWS keys in AWS_ACCESS_KEY_ID (HTTP status 403): check them, and that they are meant "
            "for it",
            id="403 alone",
        ),
        pytest.param(
            401,
            "<html>Log in</html>",
            "wrong-credentials",
            "{url} refuses the AWS keys in AWS_ACCESS_KEY_ID (HTTP status 401): check them, and that they are meant "
            "for it",
            id="401 alone",
        ),
        pytest.param(
            400,
            {"__type": "ThrottlingException", "message": "Rate exceeded"},
            "throttled",
            f"{IN_REGION} throttles the calls (ThrottlingException), even after waiting: try again with fewer forks",
            id="throttled",
        ),
        pytest.param(
            429,
            "{}",
            "throttled",
            f"{IN_REGION} throttles the calls (429), even after waiting: try again with fewer forks",
            id="429 alone",
        ),
        pytest.param(
            400,
            {"__type": "LimitExceededException", "message": "Too many tunnels."},
            "over-limit",
            "a limit of the account is reached (LimitExceededException: Too many tunnels): close unused "
            "tunnels, or ask for fewer services",
            id="a limit",
        ),
        pytest.param(
            400,
            {"__type": "ResourceNotFoundException", "message": "Tunnel 1 does not exist."},
            "not-found",
            f"{IN_REGION} has no such tunnel: check its ID, the account and the region",
            id="no such tunnel",
        ),
        pytest.param(
            400,
            {"__type": "ValidationException", "message": "maxResults is too large."},
            "bad-input",
            f"{IN_REGION} rejects the request (ValidationException: maxResults is too large)",
            id="bad input",
        ),
        pytest.param(
            400,
            {"__type": "NewException", "message": f"Not with {ACCESS_KEY}, {TOKEN}."},
            "control-api",
            f"{IN_REGION} answered NewException: Not with ***, ***",
            id="something new",
        ),
        pytest.param(
            404,
            "<html>Not found</html>",
            "control-api",
            "{url} answers with HTTP status 404, unlike the tunneling service: check "
            "AWS_ENDPOINT_URL_IOTSECURETUNNELING, and the HTTP proxy",
            id="another server",
        ),
        pytest.param(
            503,
            "<html>Down</html>",
            "control-api",
            "{url} has failed (HTTP status 503): try again later",
            id="out of order",
        ),
    ],
)
def test_a_service_says_no(shell: Shell, status: int, body: str | dict[str, str], code: str, sentence: str) -> None:
    shell.export(**KEYS)
    answer, url = answered(shell, status, body)
    assert answer[1:] == (code, sentence.replace("{url}", url))


def test_the_registry_has_sentences_of_its_own(shell: Shell) -> None:
    shell.export(**KEYS)
    answer, _ = answered(shell, 404, {"__type": "ResourceNotFoundException", "message": "No."}, api="iot")
    assert answer.code == "not-found"
    assert answer.sentence.endswith(
        "has no such thing, thing group or index: check its name, the account and the region"
    )


def test_keys_that_are_refused_are_those_of_the_profile(shell: Shell) -> None:
    shell.credentials_file.write_text(f"[staging]\n{KEYS_IN_FILE}")
    shell.export(AWS_PROFILE="staging")
    answer, _ = answered(shell, 403, {"__type": "UnrecognizedClientException"})
    assert answer.sentence.startswith("the AWS keys of the profile staging are not accepted")


SIGNATURE_EXPIRED = {
    "__type": "InvalidSignatureException",
    "message": "Signature expired: 20260101T000000Z is now earlier than 20260101T000700Z (20260101T001200Z - 5 min.)",
}
NOT_YET_CURRENT = {"__type": "SignatureDoesNotMatch", "message": "Signature not yet current: it is still later."}


@pytest.mark.parametrize(
    ("body", "ahead", "said"),
    [
        (SIGNATURE_EXPIRED, 12 * 60, "12 minutes behind"),
        (NOT_YET_CURRENT, -6 * 3600, "6 hours ahead of"),
        ({"__type": "RequestExpired"}, 90 * 86400, "90 days behind"),
        ({"__type": "RequestTimeTooSkewed"}, -10 * 60, "10 minutes ahead of"),
        ({"__type": "ExpiredTokenException"}, -5 * 60, "5 minutes ahead of"),
        ({"__type": "UnrecognizedClientException"}, 5 * 60, "5 minutes behind"),
    ],
    ids=lambda value: value.get("__type") if isinstance(value, dict) else "",
)
def test_a_clock_that_is_wrong(shell: Shell, body: dict[str, str], ahead: float, said: str) -> None:
    shell.export(**KEYS)
    answer, url = answered(shell, 403, body, clock=ahead)
    assert answer.code == "wrong-clock"
    assert answer.sentence == (
        f"this machine's clock is {said} that of {url}, so that it does not accept the AWS keys ({body['__type']}): "
        "set the clock, for example with `sudo timedatectl set-ntp true`"
    )


def test_a_request_that_was_late_although_the_clocks_agree(shell: Shell) -> None:
    shell.export(**KEYS)
    message = "Signature expired: it was first used more than 15 seconds ago. Sign the request again."
    answer, url = answered(shell, 403, {"__type": "InvalidSignatureException", "message": message})
    assert answer[1:] == (
        "wrong-clock",
        f"{url} does not accept the time of the request ({message[:-1]}): check this machine's clock, then try again",
    )


@pytest.mark.parametrize(
    ("kind", "ahead", "code"),
    [
        ("UnrecognizedClientException", 3 * 60, "wrong-credentials"),
        ("ResourceNotFoundException", 3600, "not-found"),
        ("AccessDeniedException", 3600, "no-permission"),
        ("ThrottlingException", 3600, "throttled"),
    ],
)
def test_what_the_clock_is_not_to_blame_for(shell: Shell, kind: str, ahead: float, code: str) -> None:
    """A service that has accepted the keys has accepted the time."""
    shell.export(**KEYS)
    answer, _ = answered(shell, 403, {"__type": kind}, clock=ahead)
    assert answer.code == code


def test_a_clock_that_is_wrong_for_the_service_that_gives_roles(shell: Shell) -> None:
    shell.config_file.write_text(BASE_AND_OPS)
    late = {"Date": formatdate(time() + 600, usegmt=True)}
    with answering(403, sts_error("SignatureDoesNotMatch", "Signature expired: now earlier"), late) as sts:
        shell.export(AWS_PROFILE="ops", AWS_ENDPOINT_URL_STS=sts.url)
        answer = shell.tells()
    assert answer.code == "wrong-clock"
    assert answer.sentence.startswith("this machine's clock is 10 minutes behind that of AWS STS")


@pytest.mark.parametrize(
    ("code", "message", "sentence"),
    [
        (
            "AccessDenied",
            f"User: arn:aws:iam::123456789012:user/me is not authorized to perform: sts:AssumeRole on resource: {ROLE}",
            "AWS STS refuses the role of the profile ops (AccessDenied: User: arn:aws:iam::123456789012:user/me is not "
            f"authorized to perform: sts:AssumeRole on resource: {ROLE}): allow it in the policy of the keys of the "
            f"profile base and in the trust policy of {ROLE}",
        ),
        (
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
            "AWS STS refuses the role of the profile ops (InvalidClientTokenId: The security token included in the "
            "request is invalid): check the keys of the profile base",
        ),
    ],
)
def test_a_role_is_refused(shell: Shell, code: str, message: str, sentence: str) -> None:
    shell.config_file.write_text(BASE_AND_OPS)
    with answering(403, sts_error(code, message)) as sts:
        shell.export(AWS_PROFILE="ops", AWS_ENDPOINT_URL_STS=sts.url)
        assert shell.tells() == ("ClientError", "wrong-credentials", sentence)


def test_a_web_identity_is_refused(shell: Shell) -> None:
    token = shell.home / "token"
    token.write_text(TOKEN)
    with answering(400, sts_error("ExpiredTokenException", "Token expired: current date must be earlier")) as sts:
        shell.export(AWS_WEB_IDENTITY_TOKEN_FILE=str(token), AWS_ROLE_ARN=ROLE, AWS_ENDPOINT_URL_STS=sts.url)
        raised, code, sentence = shell.tells()
    assert (raised, code) == ("ExpiredTokenException", "wrong-credentials")
    assert sentence == (
        f"AWS STS refuses the role {ROLE} (ExpiredTokenException: Token expired: current date must be earlier): check "
        f"the web identity token and the trust policy of {ROLE}"
    )
