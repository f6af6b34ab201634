# SPDX-License-Identifier: GPL-3.0-or-later
"""What is explained at all."""

from __future__ import annotations

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
    ("name", "sentence"),
    [
        (
            "RefreshWithMFAUnsupportedError",
            "the role of the profile me wants an MFA code, and there is no terminal to ask for it on: ",
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
