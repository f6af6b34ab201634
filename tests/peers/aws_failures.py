# SPDX-License-Identifier: GPL-3.0-or-later
"""Failing calls of AWS's APIs, with real errors of botocore. Nothing leaves the loopback.

Run as a program, this file makes one call and prints the resulting message; see :meth:`Shell.apart`.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any, NamedTuple

import pytest
from botocore import __version__
from botocore.config import Config
from botocore.session import Session

from peers.process import REPOSITORY, free_port
from tunnelproxy.hub.aws_errors import explain

__all__ = [
    "ACCESS_KEY",
    "BASE_AND_OPS",
    "BOTOCORE",
    "KEYS",
    "KEYS_IN_FILE",
    "OWN_SERVICE",
    "ROLE",
    "SECRETS",
    "SECRET_KEY",
    "TOKEN",
    "Server",
    "Shell",
    "Told",
    "answered",
    "answering",
    "call",
    "checked",
    "sts_error",
    "told",
]

BOTOCORE = tuple(map(int, __version__.split(".")[:2]))

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "IQoJb3JpZ2luX2VjEPT//////////wEaCXVzLWVhc3QtMSJHMEUCIQDexampleTOKEN12"
SECRETS = (ACCESS_KEY, SECRET_KEY, TOKEN)
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
KEYS_IN_FILE = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
ROLE = "arn:aws:iam::123456789012:role/ops"
OWN_SERVICE = 'for a service of your own, run `eval "$(tunnelproxy service env)"`'
BASE_AND_OPS = f"[profile base]\n{KEYS_IN_FILE}[profile ops]\nrole_arn = {ROLE}\nsource_profile = base\n"

# Loading the descriptions of the APIs takes botocore longer than the call.
_LOADER = Session().get_component("data_loader")


class Told(NamedTuple):
    """The exception of a call, and the resulting message."""

    raised: str
    code: str
    sentence: str


def call(api: str = "iotsecuretunneling", operation: str = "list_tunnels", **parameters: Any) -> None:
    """Make a call like a control process."""
    session = Session()
    session.register_component("data_loader", _LOADER)
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
    """A user's shell with only the settings of a test."""

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
        """Make a call in a separate process, with this home folder from the start, and without a terminal."""
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
    """Check the rules for all sentences."""
    assert not [secret for secret in SECRETS if secret in answer.sentence]
    assert not answer.sentence.endswith(".")
    assert answer.sentence.isprintable()
    return answer


class Server(ThreadingHTTPServer):
    """Answers all requests with the same response."""

    def __init__(self, status: int, body: str = "{}", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answer = (status, body.encode(), {"Date": formatdate(usegmt=True), **(headers or {})})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


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
    """Make a call that a service answers like this, with a clock that is some seconds ahead.

    Returns:
        the resulting message, and the service's URL.
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


if __name__ == "__main__":
    print(json.dumps(told()))
