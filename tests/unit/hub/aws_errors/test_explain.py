# SPDX-License-Identifier: GPL-3.0-or-later
"""What is explained at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore import exceptions
from botocore.session import Session

from peers.aws_failures import (
    Shell,
)
from tunnelproxy.hub.aws_errors import APIS, Failure, explain


@pytest.mark.parametrize(
    ("operation", "arguments", "raised"),
    [("list_tunnels", ("positional",), TypeError), ("list_tunels", (), AttributeError)],
)
def test_mistakes_in_this_program_are_not_explained(
    shell: Shell, operation: str, arguments: tuple[str, ...], raised: type[Exception]
) -> None:
    client = Session().create_client("iotsecuretunneling", region_name="eu-central-1", endpoint_url=shell.endpoint)
    with pytest.raises(raised) as caught:
        getattr(client, operation)(*arguments)
    assert explain(caught.value, api="iotsecuretunneling", environment={}) is None


@pytest.mark.parametrize(
    "error", [KeyError("tunnelId"), ValueError("no"), EOFError(), RuntimeError(), KeyboardInterrupt()]
)
def test_errors_of_elsewhere_are_not_explained(error: BaseException) -> None:
    assert explain(error, api="iot", environment={}) is None


def test_the_operating_system_is_quoted() -> None:
    failure = explain(PermissionError(13, "Permission denied", "/nowhere/x"), api="iot", environment={})
    assert failure == Failure("bad-input", "/nowhere/x cannot be used (Permission denied): check the AWS_ variables")


@pytest.mark.parametrize(
    ("path", "variables", "said"),
    [
        ("/web", {"AWS_WEB_IDENTITY_TOKEN_FILE": "/web"}, "the web identity token file /web cannot be read (No such"),
        ("/ops", {"AWS_PROFILE": "ops"}, "the web identity token file /ops of the profile ops cannot be read (No such"),
        (
            "/box",
            {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/box"},
            "the credentials of the container's role cannot be fetched (/box: No such file)",
        ),
        (None, {}, "the registry of things cannot be reached (No such file): check this machine's network"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_what_names_it(
    path: str | None, variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[profile ops]\nrole_arn = arn\nweb_identity_token_file = /ops\n")
    environment = {"HOME": str(tmp_path), "AWS_CONFIG_FILE": str(config), **variables}
    failure = explain(FileNotFoundError(2, "No such file", path), api="iot", environment=environment)
    assert failure is not None
    assert failure.sentence.startswith(said)


def test_an_error_that_a_later_botocore_adds_is_quoted() -> None:
    class LaterError(exceptions.BotoCoreError):
        fmt = "something new"

    failure = explain(LaterError(), api="iot", environment={})
    assert failure == Failure("control-api", "the registry of things cannot be called (something new)")


def test_what_a_service_answers_is_explained_by_its_code() -> None:
    error = exceptions.ClientError({"Error": {"Code": "ResourceNotFoundException"}}, "DescribeThing")
    failure = explain(error, api="iot", endpoint="https://me:secret@host:1/x", environment={})
    assert failure is not None
    assert (failure.code, failure.sentence.partition(" has")[0]) == ("not-found", "https://host:1")


def test_an_endpoint_that_is_none_is_told(shell: Shell) -> None:
    shell.export(AWS_ENDPOINT_URL_IOTSECURETUNNELING="nonsense", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    assert shell.tells().sentence.startswith("'nonsense' is not a URL")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "RefreshWithMFAUnsupportedError",
            "the role of the profile me needs an MFA code, and there is no terminal to enter it on: ",
        ),
        pytest.param(
            "LoginRefreshRequired",
            "the login session of the profile me cannot be used (Your session has expired or credentials have changed. "
            "Please reauthenticate using 'aws login'): run `aws login --profile me`",
            marks=pytest.mark.skipif(not hasattr(exceptions, "LoginError"), reason="this botocore knows no such login"),
        ),
    ],
)
def test_what_takes_hours_or_a_browser(name: str, sentence: str) -> None:
    """The two that are not produced, but made: credentials that expire, and a login of AWS's console."""
    failure = explain(getattr(exceptions, name)(), api="iot", environment={"AWS_PROFILE": "me"})
    assert failure is not None
    assert failure.code == "wrong-credentials"
    assert failure.sentence.startswith(sentence)


def test_each_api_is_one_that_botocore_has() -> None:
    assert set(APIS) <= set(Session().get_available_services())
    assert all(name == api.name for name, api in APIS.items())
