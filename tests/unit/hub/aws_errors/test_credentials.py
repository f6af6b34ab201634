# SPDX-License-Identifier: GPL-3.0-or-later
"""Credentials that are missing, expired or unusable, from profiles, machines and roles."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest
from botocore import exceptions

from peers.aws_failures import (
    ACCESS_KEY,
    BASE_AND_OPS,
    KEYS,
    OWN_SERVICE,
    ROLE,
    SECRET_KEY,
    TOKEN,
    Shell,
    answering,
)
from peers.process import free_port

PROCESS = "credential_process = "
MUST_PRINT = "run it by hand; it must print a JSON object with Version 1, AccessKeyId and SecretAccessKey"
BY_HAND = "run it by hand to see why; it must work without a terminal"
OLD_KEYS = json.dumps(
    {"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Expiration": "2020-01-01T00:00:00Z"}
)


@pytest.mark.parametrize(
    ("settings", "raised", "sentence"),
    [
        pytest.param(
            "region = eu-central-1",
            "NoCredentialsError",
            "the profile staging has no credentials: set AWS_PROFILE to another, or AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY; {OWN_SERVICE}",
            id="nothing in it",
        ),
        pytest.param(
            f"aws_access_key_id = {ACCESS_KEY}",
            "PartialCredentialsError",
            "the profile staging has no aws_secret_access_key: add it in {config} and {credentials}",
            id="half a key",
        ),
        pytest.param(
            f"role_arn = {ROLE}",
            "PartialCredentialsError",
            "the profile staging has a role_arn, but no source_profile or credential_source: add one to {config}",
            id="a role that nobody assumes",
        ),
        pytest.param(
            f"role_arn = {ROLE}\nsource_profile = gone",
            "InvalidConfigError",
            'the profile staging cannot be used (The source_profile "gone" referenced in the profile "staging" does '
            "not exist): correct it in {config}",
            id="a source that is gone",
        ),
        pytest.param(
            f"role_arn = {ROLE}\ncredential_source = Ec2InstanceMetadata",
            "CredentialRetrievalError",
            "the profile staging has credential_source = Ec2InstanceMetadata, which has no credentials: give this "
            "instance a role, and unset AWS_EC2_METADATA_DISABLED, or choose another profile",
            id="no instance",
        ),
        pytest.param(
            f"role_arn = {ROLE}\ncredential_source = Environment",
            "CredentialRetrievalError",
            "the profile staging has credential_source = Environment, which has no credentials: set AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, or choose another profile",
            id="no keys in the environment",
        ),
        pytest.param(
            f"role_arn = {ROLE}\nweb_identity_token_file = /gone/token",
            "FileNotFoundError",
            "the web identity token file /gone/token of the profile staging cannot be read (No such file or "
            "directory): check its web_identity_token_file",
            id="no web identity token",
        ),
        pytest.param(
            "sso_session = corp\nsso_account_id = 123456789012\nsso_role_name = ops",
            "InvalidConfigError",
            'the profile staging cannot be used (The specified sso-session does not exist: "corp"): correct it in '
            "{config}",
            id="no such SSO session",
        ),
        pytest.param(
            PROCESS + "sh -c 'echo",
            "ValueError",
            f"the credential_process of the profile staging failed (No closing quotation): {BY_HAND}",
            id="process with half a quotation",
        ),
    ],
)
def test_a_profile_that_gives_no_credentials(shell: Shell, settings: str, raised: str, sentence: str) -> None:
    shell.config_file.write_text(f"[profile staging]\n{settings}\n")
    shell.export(AWS_PROFILE="staging")
    files = {"{config}": str(shell.config_file), "{credentials}": str(shell.credentials_file)}
    for name, path in files.items():
        sentence = sentence.replace(name, path)
    assert shell.tells() == (raised, "wrong-credentials", sentence)


@pytest.mark.skipif(not hasattr(exceptions, "LoginError"), reason="this botocore knows no such login")
@pytest.mark.skipif(find_spec("awscrt") is not None, reason="this botocore can use such a login")
def test_a_login_that_needs_another_package(shell: Shell) -> None:
    shell.config_file.write_text("[profile console]\nlogin_session = me\n")
    shell.export(AWS_PROFILE="console")
    sentence = (
        "the profile console has the credentials of `aws login`, which botocore uses with awscrt only: run "
        f"`{sys.executable} -m pip install 'botocore[crt]'`"
    )
    assert shell.tells() == ("MissingDependencyException", "wrong-credentials", sentence)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("stagign", "set {} to staging, or another that"), ("x", "set {} to one that")],
)
@pytest.mark.parametrize("variable", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_no_such_profile(shell: Shell, variable: str, name: str, remedy: str) -> None:
    shell.config_file.write_text("[profile staging]\nregion = eu-central-1\n")
    shell.export(**{variable: name})
    sentence = (
        f"there is no profile {name} in {shell.config_file} and {shell.credentials_file}: {remedy.format(variable)} "
        "`aws configure list-profiles` shows"
    )
    assert shell.tells() == ("ProfileNotFound", "wrong-credentials", sentence)


def test_a_profile_without_a_name(shell: Shell) -> None:
    shell.export(AWS_PROFILE="")
    sentence = "AWS_PROFILE is empty: unset it, or set it to the name of a profile"
    assert shell.tells() == ("ProfileNotFound", "wrong-credentials", sentence)


@pytest.mark.parametrize(
    ("variables", "raised", "sentence"),
    [
        pytest.param(
            {},
            "NoCredentialsError",
            "there are no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
            + OWN_SERVICE,
            id="none",
        ),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": ACCESS_KEY},
            "PartialCredentialsError",
            "the AWS keys in the environment are not complete: set AWS_SECRET_ACCESS_KEY too",
            id="half",
        ),
        pytest.param(
            {**KEYS, "AWS_SESSION_TOKEN": TOKEN, "AWS_CREDENTIAL_EXPIRATION": "2020-01-01T00:00:00+00:00"},
            "RuntimeError",
            "the AWS keys in AWS_ACCESS_KEY_ID have expired: replace AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN, or unset them",
            id="old ones, as `aws configure export-credentials` writes them",
        ),
        pytest.param(
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/gone/token", "AWS_ROLE_ARN": ROLE},
            "FileNotFoundError",
            "the web identity token file /gone/token cannot be read (No such file or directory): check "
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            id="no web identity token",
        ),
        pytest.param(
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/gone/token"},
            "InvalidConfigError",
            "AWS_WEB_IDENTITY_TOKEN_FILE is set, but not AWS_ROLE_ARN: set both, or none",
            id="a web identity without a role",
        ),
        pytest.param(
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://container.example/role"},
            "ValueError",
            "the credentials of the container's role cannot be fetched (Unsupported host 'container.example'. Can only "
            "retrieve metadata from a loopback address or one of these hosts: 169.254.170.2, 169.254.170.23, "
            "fd00:ec2::23, localhost): check AWS_CONTAINER_CREDENTIALS_FULL_URI, and that the container has a role",
            id="a container's elsewhere",
        ),
        pytest.param(
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1/role",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/gone/token",
            },
            "FileNotFoundError",
            "the credentials of the container's role cannot be fetched (/gone/token: No such file or directory): check "
            "AWS_CONTAINER_CREDENTIALS_FULL_URI, and that the container has a role",
            id="no token of the container",
        ),
        pytest.param(
            {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": "no url"},
            "InvalidIMDSEndpointError",
            "the credentials of this instance's role cannot be fetched (Invalid endpoint EC2 Instance Metadata "
            "endpoint: no url): check the variables AWS_EC2_METADATA_*, and that the instance has a role; or set "
            "AWS_PROFILE",
            id="an instance's nowhere",
        ),
    ],
)
def test_an_environment_that_gives_no_credentials(
    shell: Shell, variables: dict[str, str], raised: str, sentence: str
) -> None:
    shell.export(**variables)
    assert shell.tells() == (raised, "wrong-credentials", sentence)


def test_a_container_that_cannot_be_asked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    url = f"http://127.0.0.1:{free_port()}/role"
    shell.export(AWS_CONTAINER_CREDENTIALS_FULL_URI=url)
    sentence = (
        f'the credentials of the container\'s role cannot be fetched (Could not connect to the endpoint URL: "{url}"): '
        "check AWS_CONTAINER_CREDENTIALS_FULL_URI, and that the container has a role"
    )
    assert shell.tells() == ("CredentialRetrievalError", "wrong-credentials", sentence)


def test_a_container_that_gives_something_else(shell: Shell) -> None:
    with answering(200, json.dumps({"AccessKeyId": ACCESS_KEY})) as container:
        shell.export(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{container.url}/role")
        answer = shell.tells()
    assert answer[:2] == ("KeyError", "wrong-credentials")
    assert "cannot be fetched (the answer has no credentials)" in answer.sentence


def test_an_instance_without_a_role_has_no_credentials(shell: Shell) -> None:
    with answering(404) as metadata:
        shell.export(AWS_EC2_METADATA_DISABLED="false", AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url)
        assert shell.tells()[:2] == ("NoCredentialsError", "wrong-credentials")


def test_an_instance_of_the_old_kind(shell: Shell) -> None:
    with answering(404) as metadata:
        shell.export(
            AWS_EC2_METADATA_DISABLED="false",
            AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url,
            AWS_EC2_METADATA_V1_DISABLED="true",
        )
        answer = shell.tells()
    assert answer[:2] == ("MetadataRetrievalError", "wrong-credentials")
    assert answer.sentence.startswith("the credentials of this instance's role cannot be fetched (Error retrieving")


def test_what_gives_a_role_cannot_be_reached(shell: Shell) -> None:
    shell.config_file.write_text(BASE_AND_OPS)
    sts = f"http://127.0.0.1:{free_port()}"
    shell.export(AWS_PROFILE="ops", AWS_ENDPOINT_URL_STS=sts)
    sentence = (
        f"{sts}, where the profile ops gets its credentials, cannot be reached (Connection refused): check this "
        "machine's network"
    )
    assert shell.tells() == ("EndpointConnectionError", "control-api", sentence)
