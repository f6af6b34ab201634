# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from botocore.exceptions import ClientError
from botocore.session import Session

from tunnelproxy.hub.aws_errors.caller_config import CallerConfig
from tunnelproxy.hub.aws_errors.case import APIS, Case, origin, wrong_credentials


def case(error: BaseException, endpoint: str = "", region: str = "", **environment: str) -> Case:
    return Case(error, APIS["iot"], endpoint, region, CallerConfig(environment, {}), now=0.0)


def test_what_was_called_is_named_by_its_url_else_by_its_title() -> None:
    assert case(OSError()).service == "the registry of things"
    assert case(OSError(), "https://host:1", "eu-central-1").where == "https://host:1 (region eu-central-1)"
    assert case(OSError(), "https://host:1").where == "https://host:1"
    assert case(ClientError({}, "AssumeRole"), "https://host:1").service == "AWS STS"


def test_the_variable_that_names_the_endpoint_is_known() -> None:
    assert case(OSError()).endpoint_setting == ""
    assert case(OSError(), AWS_ENDPOINT_URL="x").endpoint_setting == "AWS_ENDPOINT_URL"
    assert case(OSError(), AWS_ENDPOINT_URL="x", AWS_ENDPOINT_URL_IOT="y").endpoint_setting == "AWS_ENDPOINT_URL_IOT"


def test_an_error_of_the_search_for_credentials_is_told_by_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://not-allowed.example/")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(ValueError, match="Unsupported host") as caught:
        Session().get_component("credential_provider").get_provider("container-role").load()
    found = case(caught.value, AWS_ENDPOINT_URL="x")
    assert (found.in_credentials, found.endpoint_setting) == (True, "")
    assert found.words(caught.value).startswith("Unsupported host")
    assert not case(OSError()).in_credentials


def test_who_logs_in_to_a_url_is_no_part_of_its_origin() -> None:
    assert origin("https://user:password@host:1/path") == "https://host:1"
    assert origin("host") == "host"


def test_what_botocore_says_is_kept() -> None:
    assert case(OSError()).kwargs == {}
    assert wrong_credentials("no").code == "wrong-credentials"
