# SPDX-License-Identifier: GPL-3.0-or-later
"""Which profile is in use, and what renews its credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnelproxy.hub.aws_errors.caller_config import CallerConfig


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        "[profile base]\nregion = eu-west-1\nsso_session = corp\n"
        "[profile ops]\nrole_arn = arn\nsource_profile = base\n"
        "[profile web]\nlogin_session = x\n"
    )
    (tmp_path / ".aws" / "credentials").write_text("[plain]\naws_access_key_id = a\n")
    return {"HOME": str(tmp_path)}


def config(environment: dict[str, str], **variables: str) -> CallerConfig:
    return CallerConfig.of({**environment, **variables})


def test_the_profile_is_the_one_that_is_named_or_the_default(environment: dict[str, str]) -> None:
    assert config(environment).profile == "default"
    assert config(environment, AWS_PROFILE="ops").profile == "ops"
    both = config(environment, AWS_PROFILE="ops", AWS_DEFAULT_PROFILE="web")
    assert (both.profile, both.variable) == ("web", "AWS_DEFAULT_PROFILE")


def test_a_profile_takes_settings_from_its_source(environment: dict[str, str]) -> None:
    found = config(environment, AWS_PROFILE="ops")
    assert found.chain() == ["ops", "base"]
    assert (found.setting("sso_session"), found.profile_with("sso_session")) == ("corp", "base")
    assert found.setting("credential_process") == ""


@pytest.mark.parametrize(
    ("variables", "keys", "renewal"),
    [
        ({"AWS_ACCESS_KEY_ID": "a"}, "the AWS keys in AWS_ACCESS_KEY_ID", "replace AWS_ACCESS_KEY_ID, AWS_SECRET_AC"),
        ({"AWS_PROFILE": "ops"}, "the AWS keys of the profile ops", "run `aws sso login --profile base`"),
        ({"AWS_PROFILE": "web"}, "the AWS keys of the profile web", "run `aws login --profile web`"),
        ({"AWS_PROFILE": "plain"}, "the AWS keys of the profile plain", "log in again, or renew them"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "x"}, "the AWS keys of the container's role", "log in again"),
        ({}, "the AWS keys", "log in again"),
    ],
)
def test_credentials_are_named_with_what_renews_them(
    environment: dict[str, str], variables: dict[str, str], keys: str, renewal: str
) -> None:
    found = config(environment, **variables)
    assert found.keys == keys
    assert found.renewal.startswith(renewal)


def test_what_sets_the_region_is_named(environment: dict[str, str]) -> None:
    assert config(environment).region_setting == "AWS_REGION"
    assert config(environment, AWS_DEFAULT_REGION="x").region_setting == "AWS_DEFAULT_REGION"
    by_profile = config(environment, AWS_PROFILE="base").region_setting
    assert by_profile == "the region of the profile base (`aws configure set region REGION --profile base`)"


def test_files_that_cannot_be_read_are_none(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".aws" / "config").write_text("[broken")
    found = config(environment)
    assert list(found.profiles) == ["plain"]
    assert found.files == f"{tmp_path}/.aws/config and {tmp_path}/.aws/credentials"
