# SPDX-License-Identifier: GPL-3.0-or-later
"""Regions and settings."""

from __future__ import annotations

import socket

import pytest

from peers.aws_failures import (
    KEYS,
    KEYS_IN_FILE,
    OWN_SERVICE,
    SECRET_KEY,
    Shell,
)


def test_no_region(shell: Shell) -> None:
    shell.export(**KEYS, AWS_REGION=None)
    sentence = (
        "no AWS region is set: set AWS_REGION, or the region of the profile default (`aws configure set region REGION "
        f"--profile default`); {OWN_SERVICE}"
    )
    assert shell.tells() == ("NoRegionError", "wrong-region", sentence)


@pytest.mark.parametrize("name", ["eu central", "eu_central_1", "https://x"])
def test_a_region_that_cannot_be_one(shell: Shell, name: str) -> None:
    shell.export(**KEYS, AWS_REGION=name)
    sentence = f"{name!r} is not the name of an AWS region: set AWS_REGION to one such as eu-central-1"
    assert shell.tells() == ("InvalidRegionError", "wrong-region", sentence)


def test_a_region_that_cannot_be_one_in_a_profile(shell: Shell) -> None:
    shell.config_file.write_text(f"[profile staging]\n{KEYS_IN_FILE}region = eu_central_1\n")
    shell.export(AWS_REGION=None, AWS_PROFILE="staging")
    sentence = (
        "'eu_central_1' is not the name of an AWS region: set the region of the profile staging (`aws configure set "
        "region REGION --profile staging`) to one such as eu-central-1"
    )
    assert shell.tells() == ("InvalidRegionError", "wrong-region", sentence)


@pytest.fixture
def unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name server may be asked, so this is the one answer that is made up."""

    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("region", "code", "sentence"),
    [
        (
            "eu-centrall-1",
            "wrong-region",
            "'eu-centrall-1' is not the name of an AWS region: set AWS_REGION to one such as eu-central-1",
        ),
        (
            "eu-central-1",
            "control-api",
            "https://api.tunneling.iot.eu-central-1.amazonaws.com cannot be reached (Name or service not known): check "
            "this machine's network and AWS_REGION",
        ),
    ],
)
def test_a_name_that_is_not_known(shell: Shell, unresolved: None, region: str, code: str, sentence: str) -> None:
    shell.export(**KEYS, AWS_REGION=region, AWS_ENDPOINT_URL=None, AWS_ENDPOINT_URL_IOTSECURETUNNELING=None)
    assert shell.tells() == ("EndpointConnectionError", code, sentence)


@pytest.mark.parametrize("variable", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_a_file_that_cannot_be_parsed_is_named_without_its_text(shell: Shell, variable: str) -> None:
    path = shell.home / "broken"
    path.write_text(f"[default]\n{SECRET_KEY}\n")
    shell.export(**KEYS, **{variable: str(path)})
    sentence = f"{path}, line 2, cannot be parsed: correct it"
    assert shell.tells() == ("ConfigParseError", "bad-input", sentence)


@pytest.mark.parametrize(
    ("variables", "raised", "start"),
    [
        (
            {"AWS_ENDPOINT_URL_IOTSECURETUNNELING": "nowhere"},
            "ValueError",
            "'nowhere' is not a URL: set AWS_ENDPOINT_URL_IOTSECURETUNNELING to one such as https://HOST:8443",
        ),
        (
            {"AWS_METADATA_SERVICE_TIMEOUT": "soon"},
            "ValueError",
            "the AWS configuration is not valid (invalid literal for int() with base 10: 'soon'): check the AWS_ ",
        ),
        (
            {"AWS_DEFAULTS_MODE": "fast"},
            "InvalidDefaultsMode",
            "the AWS configuration is not valid (Client configured with invalid defaults mode: fast. Valid ",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_is_not_valid(shell: Shell, variables: dict[str, str], raised: str, start: str) -> None:
    shell.export(**{**KEYS, **variables})
    answer = shell.tells()
    assert answer[:2] == (raised, "bad-input")
    assert answer.sentence.startswith(start)


def test_a_request_that_the_api_does_not_take(shell: Shell) -> None:
    shell.export(**KEYS)
    sentence = (
        "the tunneling service does not accept such a request: Invalid length for parameter thingName, value: 0, valid "
        "min length: 1"
    )
    assert shell.tells(operation="list_tunnels", thingName="") == ("ParamValidationError", "bad-input", sentence)
