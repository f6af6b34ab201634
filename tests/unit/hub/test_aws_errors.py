# SPDX-License-Identifier: GPL-3.0-or-later
"""Each failure is botocore's own, in a situation made for it. Nothing leaves the loopback.

Run as a program, this file makes one call and prints what is said of it; see ``Shell.apart``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any, NamedTuple

import pytest
from botocore import __version__, exceptions
from botocore.config import Config
from botocore.session import Session

from peers.certificate import make_server_certificate
from peers.process import REPOSITORY, free_port
from tunnelproxy.hub.aws_errors import APIS, Failure, explain
from tunnelproxy.net.certificate_dates import date_text
from tunnelproxy.service.state.certificates import Certificates, server_context

BOTOCORE = tuple(map(int, __version__.split(".")[:2]))

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "IQoJb3JpZ2luX2VjEPT//////////wEaCXVzLWVhc3QtMSJHMEUCIQDexampleTOKEN12"
SECRETS = (ACCESS_KEY, SECRET_KEY, TOKEN)
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
KEYS_IN_FILE = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
ROLE = "arn:aws:iam::123456789012:role/ops"
OWN_SERVICE = 'for a service of your own, run `eval "$(tunnelproxy service env)"`'


class Told(NamedTuple):
    """What a call raised, and what is said of it."""

    raised: str
    code: str
    sentence: str


def call(api: str = "iotsecuretunneling", operation: str = "list_tunnels", **parameters: Any) -> None:
    """Make a call as a control process does."""
    session = Session()
    client = session.create_client(
        api,
        region_name=os.environ.get("AWS_REGION") or session.get_config_variable("region"),
        config=Config(connect_timeout=5, read_timeout=1, retries={"mode": "standard", "total_max_attempts": 1}),
    )
    getattr(client, operation)(**parameters)


def told(api: str = "iotsecuretunneling", operation: str = "list_tunnels", **parameters: Any) -> Told:
    """Make a call that fails."""
    try:
        call(api, operation, **parameters)
    except Exception as error:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_IOTSECURETUNNELING", "")
        region = os.environ.get("AWS_REGION", "")
        failure = explain(error, api=api, endpoint=endpoint, region=region, environment=os.environ)
        if failure is None:
            raise
        return Told(type(error).__name__, *failure)
    raise AssertionError("the call did not fail")


@dataclass
class Shell:
    """The shell of somebody who has nothing but what a test sets."""

    home: Path
    patch: pytest.MonkeyPatch
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.home / ".aws").mkdir(parents=True)
        nowhere = f"http://127.0.0.1:{free_port()}"
        self.environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "AWS_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": nowhere,
            "AWS_ENDPOINT_URL_IOTSECURETUNNELING": nowhere,
        }

    @property
    def config_file(self) -> Path:
        return self.home / ".aws" / "config"

    @property
    def credentials_file(self) -> Path:
        return self.home / ".aws" / "credentials"

    @property
    def endpoint(self) -> str:
        return self.environment["AWS_ENDPOINT_URL_IOTSECURETUNNELING"]

    def export(self, **variables: str | None) -> None:
        """Set variables; those that are None are unset."""
        self.environment.update({name: value for name, value in variables.items() if value is not None})
        for name, value in variables.items():
            if value is None:
                self.environment.pop(name, None)

    def tells(self, api: str = "iotsecuretunneling", operation: str = "list_tunnels", **parameters: Any) -> Told:
        """Make a call in this process."""
        for name in [*os.environ]:
            self.patch.delenv(name)
        for name, value in self.environment.items():
            self.patch.setenv(name, value)
        return checked(told(api, operation, **parameters))

    def apart(self, *, redirection: str = "</dev/null") -> Told:
        """Make a call in a process of its own, which has its home folder from the start, and no terminal."""
        command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, __file__]
        path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))
        done = subprocess.run(
            command,
            env={**self.environment, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return checked(Told(*json.loads(done.stdout)))


def checked(answer: Told) -> Told:
    """What holds for all sentences."""
    assert not [secret for secret in SECRETS if secret in answer.sentence]
    assert not answer.sentence.endswith(".")
    assert answer.sentence.isprintable()
    return answer


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path / "home", monkeypatch)


class Server(ThreadingHTTPServer):
    """Answers each request with the same."""

    def __init__(self, status: int, body: str = "{}", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answer = (status, body.encode(), {"Date": formatdate(usegmt=True), **(headers or {})})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none of a test's concern."""


class Answer(BaseHTTPRequestHandler):
    def answer(self) -> None:
        assert isinstance(self.server, Server)
        status, body, headers = self.server.answer
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if status:
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_CONNECT = answer  # noqa: N815


@contextlib.contextmanager
def answering(
    status: int,
    body: str = "{}",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Server]:
    with Server(status, body, headers) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def answered(
    shell: Shell, status: int, body: str | dict[str, str], *, clock: float = 0.0, api: str = "iotsecuretunneling"
) -> tuple[Told, str]:
    """Make a call that a service answers so, by a clock that is ahead by some seconds.

    Returns:
        what is told, and the service's URL.
    """
    text = body if isinstance(body, str) else json.dumps(body)
    with answering(status, text, {"Date": formatdate(time() + clock, usegmt=True)}) as server:
        shell.export(AWS_ENDPOINT_URL_IOTSECURETUNNELING=server.url, AWS_ENDPOINT_URL=server.url)
        operation = {"iotsecuretunneling": "list_tunnels", "iot": "list_things"}[api]
        return shell.tells(api, operation), server.url


def sts_error(code: str, message: str) -> str:
    return (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
    )


# --- Profiles.

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
            PROCESS + "sh -c 'echo vault: locked >&2; exit 1'",
            "CredentialRetrievalError",
            f"the credential_process of the profile staging failed (vault: locked): {BY_HAND}",
            id="process fails",
        ),
        pytest.param(
            PROCESS + "false",
            "CredentialRetrievalError",
            f"the credential_process of the profile staging failed (without a word): {BY_HAND}",
            id="process fails silently",
        ),
        pytest.param(
            PROCESS + "/gone/vault",
            "FileNotFoundError",
            f"the credential_process of the profile staging failed (/gone/vault: No such file or directory): {BY_HAND}",
            id="process is not there",
        ),
        pytest.param(
            PROCESS + "sh -c 'echo",
            "ValueError",
            f"the credential_process of the profile staging failed (No closing quotation): {BY_HAND}",
            id="process with half a quotation",
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
            f"the credential_process of the profile staging printed something else than credentials: {MUST_PRINT}",
            id="process prints garbage",
        ),
        pytest.param(
            PROCESS + "echo []",
            "AttributeError",
            f"the credential_process of the profile staging printed something else than credentials: {MUST_PRINT}",
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
def test_a_profile_that_gives_no_credentials(shell: Shell, settings: str, raised: str, sentence: str) -> None:
    shell.config_file.write_text(f"[profile staging]\n{settings}\n")
    shell.export(AWS_PROFILE="staging")
    files = {"{config}": str(shell.config_file), "{credentials}": str(shell.credentials_file)}
    for name, path in files.items():
        sentence = sentence.replace(name, path)
    assert shell.tells() == (raised, "wrong-credentials", sentence)


def test_the_words_of_a_credential_process_are_short_and_hold_no_secret(shell: Shell) -> None:
    script = shell.home / "vault"
    secrets = f"{ACCESS_KEY} {SECRET_KEY} {TOKEN} eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
    script.write_text(f"printf '%s\\n' '{'loading ' * 50}' '\x1b[31m{secrets}' >&2\necho locked >&2\nexit 1\n")
    shell.config_file.write_text(f"[default]\ncredential_process = sh {script}\n")
    sentence = shell.tells().sentence
    words = sentence.removeprefix("the credential_process of the profile default failed (").partition("): ")[0]
    assert words.startswith("…")
    assert words.endswith("loading *** *** *** *** locked")
    assert len(words) == 200


def test_the_process_of_a_source_profile_is_named_by_it(shell: Shell) -> None:
    shell.config_file.write_text(
        f"[profile staging]\nrole_arn = {ROLE}\nsource_profile = vault\n[profile vault]\ncredential_process = false\n"
    )
    shell.export(AWS_PROFILE="staging")
    assert shell.tells().sentence.startswith("the credential_process of the profile vault failed")


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


# --- Single sign-on, and codes by hand. botocore looks for the home folder when it is imported.

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
    """Leave what ``aws sso login`` leaves."""
    cache = shell.home / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    until = datetime.now(timezone.utc) + timedelta(hours=hours)
    token = {"accessToken": TOKEN, "expiresAt": until.strftime("%Y-%m-%dT%H:%M:%SZ")}
    key = hashlib.sha1((name or "https://corp.example").encode()).hexdigest()
    (cache / f"{key}.json").write_text(json.dumps(token))


@STYLES
def test_nobody_has_logged_in(shell: Shell, settings: str, cached_under: str | None) -> None:
    shell.config_file.write_text(settings)
    shell.export(AWS_PROFILE="single")
    sentence = "the profile single has no SSO session: run `aws sso login --profile single`"
    assert shell.apart() == ("SSOTokenLoadError", "wrong-credentials", sentence)


@STYLES
def test_the_login_is_over(shell: Shell, settings: str, cached_under: str | None) -> None:
    shell.config_file.write_text(settings)
    shell.export(AWS_PROFILE="single")
    log_in(shell, cached_under, hours=-1)
    raised = "TokenRetrievalError" if cached_under else "UnauthorizedSSOTokenError"
    sentence = "the SSO session of the profile single has expired: run `aws sso login --profile single`"
    if not cached_under and BOTOCORE < (1, 40):
        pytest.skip("this botocore asks AWS about an SSO session that is over")
    assert shell.apart() == (raised, "wrong-credentials", sentence)


def test_the_login_that_a_role_needs_is_named(shell: Shell) -> None:
    """`aws sso login` takes a profile of single sign-on only, not the role's."""
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
def test_single_sign_on_says_no(shell: Shell, status: int, kind: str, raised: str, sentence: str) -> None:
    shell.config_file.write_text(f"{SSO_SESSION}[profile single]\n{SSO_PROFILE}")
    log_in(shell, "corp", hours=1)
    with answering(status, '{"message": "No access"}', {"x-amzn-ErrorType": kind}) as portal:
        shell.export(AWS_PROFILE="single", AWS_ENDPOINT_URL_SSO=portal.url)
        assert shell.apart() == (raised, "wrong-credentials", sentence)


@pytest.mark.parametrize(
    ("redirection", "raised"), [("</dev/null", "EOFError"), ("<&-", "AttributeError")], ids=["no input", "closed input"]
)
def test_a_role_that_wants_a_code(shell: Shell, redirection: str, raised: str) -> None:
    shell.config_file.write_text(
        f"[profile base]\n{KEYS_IN_FILE}[profile ops]\nrole_arn = {ROLE}\nsource_profile = base\n"
        "mfa_serial = arn:aws:iam::123456789012:mfa/me\n"
    )
    shell.export(AWS_PROFILE="ops")
    sentence = (
        "the role of the profile ops wants an MFA code, and there is no terminal to ask for it on: run "
        "`aws sts get-caller-identity --profile ops` and enter the code there, then try again"
    )
    assert shell.apart(redirection=redirection) == (raised, "wrong-credentials", sentence)


# --- Credentials in the environment, and from machines.


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


def test_a_container_that_cannot_be_asked(shell: Shell) -> None:
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


# --- Roles that AWS STS gives or does not give.

BASE_AND_OPS = f"[profile base]\n{KEYS_IN_FILE}[profile ops]\nrole_arn = {ROLE}\nsource_profile = base\n"


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


def test_what_gives_a_role_cannot_be_reached(shell: Shell) -> None:
    shell.config_file.write_text(BASE_AND_OPS)
    sts = f"http://127.0.0.1:{free_port()}"
    shell.export(AWS_PROFILE="ops", AWS_ENDPOINT_URL_STS=sts)
    sentence = (
        f"{sts}, where the profile ops gets its credentials, cannot be reached (Connection refused): check this "
        "machine's network"
    )
    assert shell.tells() == ("EndpointConnectionError", "control-api", sentence)


# --- Regions and settings.


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
        "the tunneling service does not take such a request: Invalid length for parameter thingName, value: 0, valid "
        "min length: 1"
    )
    assert shell.tells(operation="list_tunnels", thingName="") == ("ParamValidationError", "bad-input", sentence)


# --- Networks.


def test_a_port_where_nothing_listens(shell: Shell) -> None:
    shell.export(**KEYS)
    sentence = (
        f"{shell.endpoint} cannot be reached (Connection refused): check that the service runs there, "
        "AWS_ENDPOINT_URL_IOTSECURETUNNELING, and this machine's network"
    )
    assert shell.tells() == ("EndpointConnectionError", "control-api", sentence)


def test_a_server_that_says_nothing(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url)
        sentence = (
            f"{url} gives no proper answer (Read timed out. (read timeout=1)): check "
            "AWS_ENDPOINT_URL_IOTSECURETUNNELING, or try again later"
        )
        assert shell.tells() == ("ReadTimeoutError", "control-api", sentence)


def test_a_server_that_hangs_up(shell: Shell) -> None:
    with answering(0) as server:
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=server.url)
        sentence = (
            f"{server.url} gives no proper answer (Remote end closed connection without response): check "
            "AWS_ENDPOINT_URL_IOTSECURETUNNELING, or try again later"
        )
        assert shell.tells() == ("ConnectionClosedError", "control-api", sentence)


@pytest.mark.parametrize(
    ("scheme", "variable", "value"),
    [
        ("http", "http_proxy", "http://127.0.0.1:{}"),
        ("https", "https_proxy", "http://me:geheim@127.0.0.1:{}"),
        ("https", "HTTPS_PROXY", "http://127.0.0.1:{}"),
    ],
)
def test_a_web_proxy_that_is_not_there(shell: Shell, scheme: str, variable: str, value: str) -> None:
    port = free_port()
    url = shell.endpoint.replace("http:", f"{scheme}:")
    shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url, **{variable: value.format(port)})
    sentence = (
        f"the HTTP proxy http://127.0.0.1:{port} does not connect to {url} (Connection refused): check {variable} and "
        "no_proxy"
    )
    assert shell.tells() == ("ProxyConnectionError", "control-api", sentence)


def test_a_web_proxy_that_wants_a_password(shell: Shell) -> None:
    url = shell.endpoint.replace("http:", "https:")
    with answering(407) as proxy:
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url, https_proxy=proxy.url)
        sentence = (
            f"the HTTP proxy {proxy.url} does not connect to {url} (Tunnel connection failed: 407 Proxy Authentication "
            "Required): check https_proxy and no_proxy"
        )
        assert shell.tells() == ("ProxyConnectionError", "control-api", sentence)


# --- Certificates.


@pytest.fixture(scope="module")
def tls(certificates: Certificates) -> ssl.SSLContext:
    return server_context(certificates)


def test_a_certificate_of_an_authority_that_is_not_known(shell: Shell, tls: ssl.SSLContext) -> None:
    with answering(200, tls=tls) as server:
        url = server.url.replace("http:", "https:")
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url)
        sentence = f"the certificate of {url} is not trusted here: set AWS_CA_BUNDLE to its authority's certificate"
        assert shell.tells() == ("SSLError", "not-trusted", sentence)


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "no PEM"])
def test_a_bundle_that_cannot_be_used(shell: Shell, tls: ssl.SSLContext, tmp_path: Path, content: str | None) -> None:
    bundle = tmp_path / "ca.pem"
    if content:
        bundle.write_text(content)
    with answering(200, tls=tls) as server:
        url = server.url.replace("http:", "https:")
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url, AWS_CA_BUNDLE=str(bundle))
        raised, code, sentence = shell.tells()
    assert (raised, code) == ("SSLError", "bad-input")
    assert sentence.startswith(f"the CA bundle {bundle} cannot be used (")
    assert sentence.endswith("): set AWS_CA_BUNDLE to a file of PEM certificates")


@pytest.mark.parametrize(
    ("address", "days", "sentence"),
    [
        (
            "127.0.0.1",
            (-3, -1),
            "the certificate of {} has expired: this machine's clock says {}: renew the certificate, or set the clock "
            "(NTP) if it is wrong",
        ),
        (
            "127.0.0.1",
            (1, 3),
            "the certificate of {} is not valid yet: this machine's clock says {}: set the clock (NTP) if it is wrong",
        ),
        (
            "127.0.0.2",
            (-1, 1),
            "the certificate of {} is for another name: check AWS_ENDPOINT_URL_IOTSECURETUNNELING",
        ),
    ],
    ids=["expired", "not yet valid", "another name"],
)
def test_a_certificate_that_does_not_hold(
    shell: Shell, tmp_path: Path, address: str, days: tuple[int, int], sentence: str
) -> None:
    bundle = tmp_path / "server.pem"
    with answering(200, tls=own_context(bundle, address, *days)) as server:
        url = server.url.replace("http:", "https:")
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url, AWS_CA_BUNDLE=str(bundle))
        raised, code, told = shell.tells()
    assert (raised, code) == ("SSLError", "not-trusted")
    assert told in {sentence.format(url, date_text(time() - seconds)) for seconds in (0, 59)}


def own_context(path: Path, address: str, start: int, end: int) -> ssl.SSLContext:
    """A server's TLS with a certificate of its own, for an address, from some days from now until others."""
    make_server_certificate(path, start, end, address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_a_server_without_tls(shell: Shell) -> None:
    with answering(200) as server:
        url = server.url.replace("http:", "https:")
        shell.export(**KEYS, AWS_ENDPOINT_URL_IOTSECURETUNNELING=url)
        raised, code, sentence = shell.tells()
    assert (raised, code) == ("SSLError", "control-api")
    assert sentence.startswith(f"{url} does not speak TLS as it should (")
    assert sentence.endswith("): check AWS_ENDPOINT_URL_IOTSECURETUNNELING and the HTTP proxy")


# --- What services answer.

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
            "a limit of the account is reached (LimitExceededException: Too many tunnels): close tunnels that nobody "
            "needs, or ask for fewer services",
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


def test_a_session_of_single_sign_on_that_a_service_calls_expired(shell: Shell) -> None:
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


# --- Clocks.

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


# --- What is not explained.


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


if __name__ == "__main__":
    print(json.dumps(told()))
