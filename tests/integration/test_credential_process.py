# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles with a ``credential_process`` that fails, run by botocore as the hub's control process does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peers.aws_failures import ACCESS_KEY, ROLE, SECRET_KEY, TOKEN, Shell

PROCESS = "credential_process = "
MUST_PRINT = "run it by hand; it must print a JSON object with Version 1, AccessKeyId and SecretAccessKey"
BY_HAND = "run it by hand to see why; it must work without a terminal"
OLD_KEYS = json.dumps(
    {"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Expiration": "2020-01-01T00:00:00Z"}
)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path / "home", monkeypatch)


@pytest.mark.parametrize(
    ("settings", "raised", "sentence"),
    [
        pytest.param(
            PROCESS + "sh -c 'echo vault: locked >&2; exit 1'",
            "CredentialRetrievalError",
            f"the credential_process of the profile staging failed (vault: locked): {BY_HAND}",
            id="process fails",
        ),
        pytest.param(
            PROCESS + "false",
            "CredentialRetrievalError",
            f"the credential_process of the profile staging failed (it printed nothing): {BY_HAND}",
            id="process fails silently",
        ),
        pytest.param(
            PROCESS + "/gone/vault",
            "FileNotFoundError",
            f"the credential_process of the profile staging failed (/gone/vault: No such file or directory): {BY_HAND}",
            id="process is not there",
        ),
        pytest.param(
            PROCESS + "echo '{\"Version\": 1}'",
            "CredentialRetrievalError",
            "the credential_process of the profile staging failed (Missing required key in response: 'AccessKeyId'): "
            + BY_HAND,
            id="process prints nothing of use",
        ),
        pytest.param(
            PROCESS + f"echo {SECRET_KEY}",
            "JSONDecodeError",
            f"the credential_process of the profile staging printed something other than credentials: {MUST_PRINT}",
            id="process prints garbage",
        ),
        pytest.param(
            PROCESS + "echo []",
            "AttributeError",
            f"the credential_process of the profile staging printed something other than credentials: {MUST_PRINT}",
            id="process prints another object",
        ),
        pytest.param(
            PROCESS + f"echo '{OLD_KEYS}'",
            "RuntimeError",
            f"the credential_process of the profile staging printed credentials that have expired: {MUST_PRINT}",
            id="process prints old credentials",
        ),
    ],
)
def test_a_process_without_usable_output(shell: Shell, settings: str, raised: str, sentence: str) -> None:
    shell.config_file.write_text(f"[profile staging]\n{settings}\n")
    shell.export(AWS_PROFILE="staging")
    assert shell.tells() == (raised, "wrong-credentials", sentence)


def test_quoted_output_of_a_credential_process_is_short_and_without_secrets(shell: Shell) -> None:
    script = shell.home / "vault"
    secrets = f"{ACCESS_KEY} {SECRET_KEY} {TOKEN} eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
    script.write_text(f"printf '%s\\n' '{'loading ' * 50}' '\x1b[31m{secrets}' >&2\necho locked >&2\nexit 1\n")
    shell.config_file.write_text(f"[default]\ncredential_process = sh {script}\n")
    sentence = shell.tells().sentence
    words = sentence.removeprefix("the credential_process of the profile default failed (").partition("): ")[0]
    assert words.startswith("…")
    assert words.endswith("loading *** *** *** *** locked")
    assert len(words) == 200


def test_the_process_of_a_source_profile_is_named_by_that_profile(shell: Shell) -> None:
    shell.config_file.write_text(
        f"[profile staging]\nrole_arn = {ROLE}\nsource_profile = vault\n[profile vault]\ncredential_process = false\n"
    )
    shell.export(AWS_PROFILE="staging")
    assert shell.tells().sentence.startswith("the credential_process of the profile vault failed")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("credential_process = /no/such", "the credential_process of the profile ops failed (/no/such: "),
        ("credential_process = echo nothing", "the credential_process of the profile ops printed something"),
    ],
)
def test_python_errors_about_credentials_are_recognized_by_their_traceback(
    shell: Shell, settings: str, said: str
) -> None:
    shell.config_file.write_text(f"[profile ops]\n{settings}\n")
    shell.export(AWS_PROFILE="ops")
    assert shell.tells().sentence.startswith(said)
