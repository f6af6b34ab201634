# SPDX-License-Identifier: GPL-3.0-or-later
"""The real tunneling service, in a separate process."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .process import wait_for
from .users import as_user

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE = 40.0
STOP_DEADLINE = 10.0


class TunnelingService:
    """Runs ``tunnelproxy service run`` with a temporary state directory.

    Args:
        options: further options of ``service run``.
        user: the user that it runs as; None for the user who runs the test.
    """

    def __init__(self, *options: str, user: str | None = None) -> None:
        self._options = options
        self._enter = [] if user is None else as_user(user)
        self._home = Path(tempfile.mkdtemp(prefix="tunneling-service-"))
        if user is not None:
            shutil.chown(self._home, user)
        self.state_dir = self._home / "state"
        self._log = self._home / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.api = ""
        self.data = ""
        self.ca = ""
        self.mqtt = ""
        self.environment: dict[str, str] = {}
        self._client: Any = None

    def __enter__(self) -> TunnelingService:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def pid(self) -> int:
        """The service's process ID."""
        assert self._process is not None
        return self._process.pid

    @property
    def ca_pem(self) -> str:
        """The file that holds the service's certificate authority."""
        return f"{self.ca}/ca.pem"

    def start(self, *options: str) -> None:
        """Start or restart the service on its state directory, and wait until it is ready.

        Args:
            options: further options, which override earlier ones.
        """
        self._options = (*self._options, *options)
        self._client = None
        before = self.api, self.data, self.ca
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._enter, *self.command("run", *self._options)], cwd=ROOT, stdout=subprocess.PIPE, stderr=log
            )
        words = dict(word.split("=", 1) for word in self._ready_line().split()[1:])
        self.api, self.data, self.ca = words["api"], words["data"], words["ca"]
        self.mqtt = words.get("mqtt", "")
        if (self.api, self.data, self.ca) != before:
            self.environment = self.read_environment()

    def read_environment(self) -> dict[str, str]:
        """The variables that ``service env`` prints for clients."""
        return read_exports(
            subprocess.run(self.command("env"), cwd=ROOT, check=True, capture_output=True, text=True).stdout
        )

    def stop(self) -> int:
        """Stop the service with SIGTERM and return its exit status."""
        return self._end(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until the service, which is stopping, has exited, and return its exit status."""
        return self._end(None)

    def kill(self) -> int:
        """Kill the service with SIGKILL and return its exit status."""
        return self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Stop the service and remove its state."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def command(self, *arguments: str) -> list[str]:
        """A ``tunnelproxy service`` command line for this state directory."""
        name, *rest = arguments
        return [sys.executable, "-m", "tunnelproxy", "service", name, "--state-dir", str(self.state_dir), *rest]

    def add_thing(self, thing: str, output: Path, *options: str) -> str:
        """Enrol a device with ``service add-thing``, and return what that prints."""
        return subprocess.run(
            self.command("add-thing", thing, "--output", str(output), *options),
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def log_text(self) -> str:
        """The service's log."""
        return self._log.read_text()

    def boto3_client(self, api: str = "iotsecuretunneling", **settings: Any) -> Any:
        """A boto3 client for the service, for tunnels or (``iot``) things; ``settings`` replace its environment's.

        Without arguments, it is the same one until the service is restarted: creating one is slow.
        """
        if settings or api != "iotsecuretunneling":
            return self._make_client(api, **settings)
        if self._client is None:
            self._client = self._make_client(api)
        return self._client

    def _make_client(self, api: str, **settings: Any) -> Any:
        import boto3  # noqa: PLC0415 - slow, and not every test needs it

        environment = self.environment
        return boto3.Session().client(
            api,
            **{
                "endpoint_url": environment["AWS_ENDPOINT_URL_IOTSECURETUNNELING"],
                "region_name": environment["AWS_REGION"],
                "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
                "verify": environment["AWS_CA_BUNDLE"],
                **settings,
            },
        )

    def connect(self, mode: str, token: str, *, version: int = 3, client_token: str = "", **settings: Any) -> Any:
        """A WebSocket to the data plane, as a context manager; ``settings`` are those of websockets' sync client."""
        from websockets.sync.client import connect  # noqa: PLC0415 - only for tests of the wire

        headers = {"access-token": token, **({"client-token": client_token} if client_token else {})}
        return connect(
            f"wss://{self.data}/tunnel?local-proxy-mode={mode}",
            **{
                "ssl": ssl.create_default_context(capath=self.ca),
                "subprotocols": [f"aws.iot.securetunneling-{version}.0"],
                "additional_headers": headers,
                **settings,
            },
        )

    def _ready_line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        stdout = self._process.stdout
        deadline = time.monotonic() + START_DEADLINE
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
                some = os.read(stdout.fileno(), 4096)
                if not some:
                    break
                line += some
        if not line.startswith(b"ready ") or not line.endswith(b"\n"):
            self.kill()
            raise AssertionError(f"the tunneling service is not ready; it said {line!r} and logged:\n{self.log_text()}")
        return line.decode()

    def _end(self, number: signal.Signals | None) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        # Its broker, if any: the kernel terminates it too, and it then still writes to the state directory.
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        if number is not None:
            process.send_signal(number)
        try:
            return process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            assert process.stdout is not None
            process.stdout.close()
            wait_for(lambda: all(map(_has_ended, children)), "the service's broker exits")


def _has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def read_exports(lines: str) -> dict[str, str]:
    """The variables that a shell would have after ``eval``."""
    words = [shlex.split(line) for line in lines.splitlines()]
    return dict(assignment.split("=", 1) for _, assignment in words)


def closing(connection: Any) -> tuple[int, str]:
    """Read a WebSocket to its end, and return the code and reason with which the service closed it."""
    from websockets.exceptions import ConnectionClosed  # noqa: PLC0415 - only for tests of the wire

    try:
        while True:
            connection.recv(timeout=10)
    except ConnectionClosed as closed:
        return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")
