# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources of botocore's credentials: files, programs, and small local servers that answer like those of AWS.

Each source provides the keys that a test gives it, and can be broken. The keys are those of a tunneling service;
sources of temporary credentials add a session token.
"""

from __future__ import annotations

import configparser
import datetime as dt
import hashlib
import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from .process import REPOSITORY
from .service import TunnelingService

__all__ = [
    "SOURCES",
    "AssumedRole",
    "Container",
    "CredentialProcess",
    "InstanceMetadata",
    "Keys",
    "Profile",
    "SingleSignOn",
    "Source",
    "StaticKeys",
    "WebIdentity",
    "add_keys",
    "key_command",
    "remove_keys",
    "without_keys",
]

ROLE = "arn:aws:iam::123456789012:role/operator"

LIFETIME = dt.timedelta(minutes=5)
"""The lifetime of temporary credentials. botocore does not cache those that expire within ten minutes."""


@dataclass(frozen=True)
class Keys:
    """An access key of a tunneling service, under the name by which the service knows it."""

    name: str
    access_key_id: str
    secret_access_key: str = field(repr=False)

    @property
    def session_token(self) -> str:
        """The session token that a source of temporary credentials adds."""
        return f"session token of {self.access_key_id}"


def add_keys(service: TunnelingService, name: str) -> Keys:
    """Make an access key."""
    profiles = configparser.ConfigParser(interpolation=None)
    profiles.read_string(key_command(service, "add", name))
    return Keys(name, profiles[name]["aws_access_key_id"], profiles[name]["aws_secret_access_key"])


def remove_keys(service: TunnelingService, keys: Keys) -> None:
    """Remove an access key: the service then refuses its signatures."""
    key_command(service, "remove", keys.name)


def key_command(service: TunnelingService, *arguments: str) -> str:
    """Run ``service key`` and return what it prints."""
    command = [sys.executable, "-m", "tunnelproxy", "service", "key", *arguments]
    command += ["--state-dir", str(service.state_dir)]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


def without_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment with the address of a service, but without keys."""
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    return {name: value for name, value in environment.items() if name not in keys}


class Source:
    """One way in which botocore gets credentials. Use it as a context manager.

    Args:
        home: the home folder of its user.

    Attributes:
        name: its name in tests.
        words: a regular expression for the error message once it is broken.
    """

    name = ""
    words = ""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.aws = home / ".aws"
        self.aws.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing runs."""

    def environment(self) -> dict[str, str]:
        """The variables of its user, in addition to the address of the service."""
        # Otherwise botocore finally looks for an instance's metadata on this network.
        return {"HOME": str(self.home), "AWS_EC2_METADATA_DISABLED": "true"}

    def use(self, keys: Keys) -> None:
        """Give out these credentials."""
        raise NotImplementedError

    def break_it(self) -> None:
        """Give out no credentials."""
        raise NotImplementedError


class StaticKeys(Source):
    """Keys in the environment."""

    name = "static"
    words = r"keys in the environment are not complete: set AWS_SECRET_ACCESS_KEY"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._keys: dict[str, str] = {}

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self._keys}

    def use(self, keys: Keys) -> None:
        self._keys = {"AWS_ACCESS_KEY_ID": keys.access_key_id, "AWS_SECRET_ACCESS_KEY": keys.secret_access_key}

    def break_it(self) -> None:
        self._keys.pop("AWS_SECRET_ACCESS_KEY")


class Profile(Source):
    """A profile in the shared credentials file."""

    name = "profile"
    words = r"there is no profile field in .*: set AWS_PROFILE"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "AWS_PROFILE": "field"}

    def use(self, keys: Keys) -> None:
        self._write("field", keys)

    def break_it(self) -> None:
        self._write("another", Keys("", "AKIAANYBODY", "any"))

    def _write(self, profile: str, keys: Keys) -> None:
        (self.aws / "credentials").write_text(
            f"[{profile}]\naws_access_key_id = {keys.access_key_id}\naws_secret_access_key = {keys.secret_access_key}\n"
        )


class CredentialProcess(Source):
    """A program that a profile names, which prints credentials."""

    name = "credential_process"
    words = r"credential_process of the profile vault failed \(the vault is sealed\): run it by hand"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._program = home / "print credentials"
        (self.aws / "config").write_text(f"[profile vault]\ncredential_process = {shlex.quote(str(self._program))}\n")

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "AWS_PROFILE": "vault"}

    def use(self, keys: Keys) -> None:
        self._write(f"cat <<'END'\n{json.dumps({'Version': 1, **_credentials(keys, 'SessionToken')})}\nEND\n")

    def break_it(self) -> None:
        self._write("echo 'the vault is sealed' >&2\nexit 3\n")

    def _write(self, script: str) -> None:
        self._program.write_text(f"#!/bin/sh\n{script}")
        self._program.chmod(0o700)


class _Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: str


class _Answer(NamedTuple):
    status: int
    body: str
    content_type: str = "application/json"


_NOT_FOUND = _Answer(404, "")


class _Served(Source):
    """A source that is a server on the loopback."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._keys: Keys | None = None
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
                answer = source.answer(_Request(self.command, self.path, self.headers, body))
                content = answer.body.encode()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PUT = do_GET  # noqa: N815  as http.server calls them

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Source:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def use(self, keys: Keys) -> None:
        self._keys = keys

    def break_it(self) -> None:
        self._keys = None

    def answer(self, request: _Request) -> _Answer:
        """Answer a request."""
        raise NotImplementedError


class SingleSignOn(_Served):
    """IAM Identity Center: a token that ``aws sso login`` left in the home folder, and its portal."""

    name = "sso"
    words = r"SSO session of the profile field-sso has expired: run `aws sso login --profile field-sso`"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._logged_in = False
        (self.aws / "config").write_text(
            "[sso-session company]\nsso_start_url = https://company.example/start\nsso_region = us-east-1\n"
            "[profile field-sso]\nsso_session = company\nsso_account_id = 123456789012\nsso_role_name = operator\n"
        )

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "AWS_PROFILE": "field-sso", "AWS_ENDPOINT_URL_SSO": self.url}

    def use(self, keys: Keys) -> None:
        super().use(keys)
        # As if the portal had new keys during the session, without any local change.
        if not self._logged_in:
            self._log_in(hours=8)

    def break_it(self) -> None:
        """Expire the session, as happens overnight."""
        self._log_in(hours=-1)

    def _log_in(self, hours: int) -> None:
        self._logged_in = hours > 0
        token = self.aws / "sso" / "cache" / f"{hashlib.sha1(b'company', usedforsecurity=False).hexdigest()}.json"
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text(
            json.dumps(
                {
                    "startUrl": "https://company.example/start",
                    "region": "us-east-1",
                    "accessToken": "of the portal",
                    "expiresAt": _time(dt.timedelta(hours=hours)),
                }
            )
        )

    def answer(self, request: _Request) -> _Answer:
        if request.headers.get("x-amz-sso_bearer_token") != "of the portal" or self._keys is None:
            return _Answer(401, json.dumps({"__type": "UnauthorizedException", "message": "Session token not found"}))
        expires_at = dt.datetime.now(dt.timezone.utc) + LIFETIME
        return _Answer(
            200,
            json.dumps(
                {
                    "roleCredentials": {
                        "accessKeyId": self._keys.access_key_id,
                        "secretAccessKey": self._keys.secret_access_key,
                        "sessionToken": self._keys.session_token,
                        "expiration": int(expires_at.timestamp() * 1000),
                    }
                }
            ),
        )


class _Sts(_Served):
    """The Security Token Service, which gives out credentials of roles."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "AWS_ENDPOINT_URL_STS": self.url}

    def answer(self, request: _Request) -> _Answer:
        action = parse_qs(request.body)["Action"][0]
        if self._keys is None:
            message = f"User: arn:aws:iam::123456789012:user/anna is not authorized to perform: sts:{action}"
            text = (
                f"<ErrorResponse><Error><Code>AccessDenied</Code><Message>{message}</Message></Error></ErrorResponse>"
            )
            return _Answer(403, text, "text/xml")
        credentials = _credentials(self._keys, "SessionToken")
        members = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in credentials.items())
        user = f"<AssumedRoleUser><AssumedRoleId>AROAX:s</AssumedRoleId><Arn>{ROLE}</Arn></AssumedRoleUser>"
        result = f"<{action}Result><Credentials>{members}</Credentials>{user}</{action}Result>"
        metadata = "<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>"
        return _Answer(200, f"<{action}Response>{result}{metadata}</{action}Response>", "text/xml")


class AssumedRole(_Sts):
    """A profile with a role, which another profile's keys may assume."""

    name = "role"
    words = (
        r"role of the profile field-role \(AccessDenied: .*sts:AssumeRole.*\): allow .* the keys of the profile anna"
    )

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        (self.aws / "credentials").write_text("[anna]\naws_access_key_id = AKIAANNA\naws_secret_access_key = any\n")
        self._write("")

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "AWS_PROFILE": "field-role"}

    def want_mfa_code(self) -> None:
        """Make the role require an MFA code, which a user has to type."""
        self._write("mfa_serial = arn:aws:iam::123456789012:mfa/anna\n")

    def _write(self, more: str) -> None:
        (self.aws / "config").write_text(f"[profile field-role]\nrole_arn = {ROLE}\nsource_profile = anna\n{more}")


class WebIdentity(_Sts):
    """A role that a token in a file may assume, as in a pod of Kubernetes or a CI job."""

    name = "web identity"
    words = r"web identity token file .* cannot be read .*: check AWS_WEB_IDENTITY_TOKEN_FILE"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._token = home / "token"

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(self._token),
            "AWS_ROLE_ARN": ROLE,
            "AWS_ROLE_SESSION_NAME": "job",
        }

    def use(self, keys: Keys) -> None:
        super().use(keys)
        if not self._token.exists():
            self._token.write_text("of the identity provider")

    def break_it(self) -> None:
        """Remove the file, as if a volume were not mounted."""
        self._token.unlink()


class Container(_Served):
    """The credentials of a task in a container, from an agent next to it."""

    name = "container"
    words = (
        r"container's role cannot be fetched \(.*this task has no role.*\): check AWS_CONTAINER_CREDENTIALS_FULL_URI"
    )

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.url}/task",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "of the task",
        }

    def answer(self, request: _Request) -> _Answer:
        if request.headers.get("Authorization") != "of the task" or request.path != "/task" or self._keys is None:
            return _Answer(403, json.dumps({"code": "AccessDenied", "message": "this task has no role"}))
        return _Answer(200, json.dumps(_credentials(self._keys, "Token")))


class InstanceMetadata(_Served):
    """The metadata service of an instance (IMDSv2)."""

    name = "instance metadata"
    words = r"there are no AWS credentials: set AWS_PROFILE"

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.url}

    def answer(self, request: _Request) -> _Answer:
        root = "/latest/meta-data/iam/security-credentials/"
        if request.method == "PUT" and request.path == "/latest/api/token":
            return _Answer(200, "of the session", "text/plain")
        if request.headers.get("x-aws-ec2-metadata-token") != "of the session":
            return _Answer(401, "")
        if self._keys is None or not request.path.startswith(root):
            return _NOT_FOUND
        if request.path == root:
            return _Answer(200, "operator", "text/plain")
        return _Answer(200, json.dumps({"Code": "Success", **_credentials(self._keys, "Token")}))


SOURCES: tuple[type[Source], ...] = (
    StaticKeys,
    Profile,
    SingleSignOn,
    CredentialProcess,
    AssumedRole,
    WebIdentity,
    Container,
    InstanceMetadata,
)


def _credentials(keys: Keys, token: str) -> dict[str, str]:
    """Temporary credentials in AWS's usual format, which varies in the name of the token."""
    return {
        "AccessKeyId": keys.access_key_id,
        "SecretAccessKey": keys.secret_access_key,
        token: keys.session_token,
        "Expiration": _time(LIFETIME),
    }


def _time(away: dt.timedelta) -> str:
    return f"{dt.datetime.now(dt.timezone.utc) + away:%Y-%m-%dT%H:%M:%SZ}"
