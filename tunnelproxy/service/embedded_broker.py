# SPDX-License-Identifier: Apache-2.0
"""An MQTT broker that the service runs: Mosquitto, as a child process.

No broker in Python would do: amqtt, the one that is kept up, does not run on Python 3.9, wants one exact version of
websockets, and is known to leak memory (its issue 123). Mosquitto is small, in every distribution, and what an operator
would use anyhow.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from ..transport.backoff import Backoff
from .certificates import Certificates
from .errors import ServiceError
from .passwords import Passwords
from .state_dir import replace_file

__all__ = ["NOTIFIER", "EmbeddedBroker"]

NOTIFIER = "tunnel.notifier"
"""The service's user at the broker; no thing can have this name."""

_PORT_SECONDS = 5.0
_START_SECONDS = 10.0
_WATCH_SECONDS = 0.5
_STOP_SECONDS = 3.0

_CONFIGURATION = """\
# Written by "tunnelproxy service run" at each start. docs/mosquitto.conf says why it is so.
listener {port} {host}
certfile {certificate}
keyfile {key}
tls_version tlsv1.2
allow_anonymous false
password_file {passwords}
acl_file {acl}
use_username_as_clientid true
persistence true
persistence_location {directory}/
autosave_on_changes true
autosave_interval 1
persistent_client_expiration 12h
max_queued_messages 100
max_packet_size 16384
log_dest stderr
log_timestamp false
log_type error
log_type warning
{user}
"""

_ACCESS_RULES = f"""\
user {NOTIFIER}
topic write $aws/things/+/tunnels/notify

pattern read $aws/things/%u/tunnels/notify
"""

# The kernel ends the broker with the service, also when that is killed: 1 is PR_SET_PDEATHSIG (prctl(2)).
_EXEC = """\
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
except (AttributeError, OSError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

_log = logging.getLogger(__name__)


class EmbeddedBroker:
    """Runs Mosquitto, and runs it again when it ends.

    Args:
        directory: for its files.
        host: the address to listen on.
        port: the port to listen on; 0 for any.

    Raises:
        ServiceError: Mosquitto is not installed, or the port is taken.
    """

    def __init__(self, directory: Path, certificates: Certificates, host: str, port: int) -> None:
        self._directory = directory
        self._program = _find_mosquitto()
        self.port = _free_port(host, port)
        self._host = host
        self.passwords = Passwords(directory / "passwords")
        directory.mkdir(mode=0o700, exist_ok=True)
        self.password = self.passwords.set(NOTIFIER)
        self._configuration = directory / "mosquitto.conf"
        self._process: asyncio.subprocess.Process | None = None
        rules = directory / "acl"
        replace_file(rules, _ACCESS_RULES.encode())
        configuration = _CONFIGURATION.format(
            port=self.port,
            host=host,
            certificate=certificates.server_chain,
            key=certificates.server_key,
            passwords=self.passwords.path,
            acl=rules,
            directory=directory,
            # As root it would become a user who can read none of this.
            user="user root" if os.geteuid() == 0 else "",
        )
        replace_file(self._configuration, configuration.encode())

    async def run(self) -> None:
        """Keep the broker running; ends when cancelled only, and the broker with it."""
        backoff = Backoff()
        watching = asyncio.ensure_future(self._watch_passwords())
        try:
            while True:
                status = await self._run_once()
                delay = backoff.next_delay()
                _log.warning("mosquitto ended with status %d; starting it again in %.1f s", status, delay)
                await asyncio.sleep(delay)
        finally:
            watching.cancel()

    async def wait_until_it_listens(self) -> None:
        """Wait for the broker's start.

        Raises:
            ServiceError: it does not start.
        """
        deadline = time.monotonic() + _START_SECONDS
        host = self._host if self._host not in ("0.0.0.0", "::") else "localhost"  # noqa: S104  to compare
        while True:
            try:
                _, writer = await asyncio.open_connection(host, self.port)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"mosquitto does not start; see what it says: {self._program} -c {self._configuration}"
                    ) from error
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    async def _run_once(self) -> int:
        command = [sys.executable, "-c", _EXEC, str(os.getpid()), self._program, "-c", str(self._configuration)]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._process = process
        try:
            if process.stderr is not None:
                async for line in process.stderr:
                    said = line.decode(errors="replace").strip()
                    _log.log(logging.WARNING if "Error" in said else logging.DEBUG, "mosquitto: %s", said)
            return await process.wait()
        finally:
            self._process = None
            await _end(process)

    async def _watch_passwords(self) -> None:
        """Tell the broker when ``service add-thing``, another process, has changed the passwords."""
        seen = self.passwords.version()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._process is not None and seen != self.passwords.version():
                seen = self.passwords.version()
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGHUP)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except asyncio.TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _find_mosquitto() -> str:
    # A plain user's PATH has no sbin.
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
    if program is None:
        raise ServiceError(
            "mosquitto is not installed, which --mqtt-port needs: install it (Debian: sudo apt-get install mosquitto), "
            "or name a broker that runs elsewhere with --mqtt-broker"
        )
    return program


def _free_port(host: str, port: int) -> int:
    """A port to listen on. The broker of a service that was killed may need a moment to leave its port."""
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.create_server((str(address[0]), port), family=family) as probe:
                found: int = probe.getsockname()[1]
                return found
        except OSError as error:
            # Not another port: the agents look for the broker at this one.
            if time.monotonic() > deadline or isinstance(error, socket.gaierror):
                raise ServiceError(
                    f"cannot listen on port {port} of {host} for MQTT ({error.strerror}); give --mqtt-port another one"
                ) from error
            time.sleep(0.05)
