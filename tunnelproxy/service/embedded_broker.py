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
import shlex
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from ..mqtt import Broker
from ..transport.backoff import Backoff
from .broker_administrator import BrokerAdministrator
from .broker_rules import ADMINISTRATOR, NOTIFIER, configuration
from .certificates import Certificates, OwnCertificate
from .errors import ServiceError
from .passwords import Passwords
from .state_dir import replace_file

__all__ = ["EmbeddedBroker"]

_PORT_SECONDS = 5.0
_START_SECONDS = 10.0
_WATCH_SECONDS = 0.5
_STOP_SECONDS = 3.0
_LONGEST_SOCKET_PATH = 107
"""Bytes; unix(7)."""

# The service itself comes by the Unix socket, in a directory that is its own: so it depends neither on the names in the
# certificate nor on who signed that. Mosquitto runs in that directory, as the path of a socket must have no space here.
# dlopen(3) finds the plugin.
_CONFIGURATION = """\
# Written by "tunnelproxy service run" at each start. docs/mosquitto.conf says why it is so.
listener {port} {host}
certfile {certificate}
keyfile {key}
tls_version tlsv1.2
listener 0 {socket}
allow_anonymous false
password_file {passwords}
plugin mosquitto_dynamic_security.so
plugin_opt_config_file {rules}
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
        certificate: what to show to things.

    Raises:
        ServiceError: Mosquitto is not installed, the port is taken, or the certificate cannot be read.
    """

    def __init__(self, directory: Path, host: str, port: int, certificate: Certificates | OwnCertificate) -> None:
        self._program = _find_mosquitto()
        self._socket = directory / "socket"
        if len(os.fsencode(self._socket)) > _LONGEST_SOCKET_PATH:
            raise ServiceError(f"{self._socket} is too long for a socket; give --state-dir a shorter path")
        self.port = _free_port(host, port)
        directory.mkdir(mode=0o700, exist_ok=True)
        self._passwords = Passwords(directory / "passwords")
        self.notifier = self._join_as(NOTIFIER)
        """The way by which the service notifies."""
        self._administrator = BrokerAdministrator(self._join_as(ADMINISTRATOR))
        self._rules = directory / "dynamic-security.json"
        self._certificate = OwnCertificate(directory / "server.pem", directory / "server-key.pem")
        self._copy_certificate(certificate)
        self._configuration = directory / "mosquitto.conf"
        self._process: asyncio.subprocess.Process | None = None
        self._last_error = ""
        content = _CONFIGURATION.format(
            port=self.port,
            host=host,
            certificate=self._certificate.server_chain,
            key=self._certificate.server_key,
            socket=self._socket.name,
            passwords=self._passwords.path,
            rules=self._rules,
            directory=directory,
            # As root it would become a user who can read none of this.
            user="user root" if os.geteuid() == 0 else "",
        )
        replace_file(self._configuration, content.encode())

    async def run(self) -> None:
        """Keep the broker running; ends when cancelled only, and the broker with it."""
        backoff = Backoff()
        beside = [
            asyncio.ensure_future(self._administrator.run()),
            asyncio.ensure_future(self._follow_enrolments()),
        ]
        try:
            while True:
                status = await self._run_once()
                delay = backoff.next_delay()
                _log.warning("mosquitto ended with status %d; starting it again in %.1f s", status, delay)
                await asyncio.sleep(delay)
        finally:
            for task in beside:
                task.cancel()

    async def wait_until_it_listens(self) -> None:
        """Wait for the broker's start.

        Raises:
            ServiceError: it does not start.
        """
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                # It listens here last.
                _, writer = await asyncio.open_unix_connection(str(self._socket))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"mosquitto does not start{self._last_error}; see what it says: "
                        f"cd {shlex.quote(str(self._socket.parent))} && {self._program} -c {self._configuration.name}"
                    ) from error
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    def use_certificate(self, certificate: Certificates | OwnCertificate) -> None:
        """Show another certificate to things that connect from now on.

        Raises:
            ServiceError: it cannot be read.
        """
        self._copy_certificate(certificate)
        self._have_files_read_again()

    def _copy_certificate(self, certificate: Certificates | OwnCertificate) -> None:
        # Copies: Mosquitto reads its files again whenever a password changes, when the operator's may be half a pair.
        try:
            replace_file(self._certificate.server_chain, certificate.server_chain.read_bytes())
            replace_file(self._certificate.server_key, certificate.server_key.read_bytes())
        except OSError as error:
            raise ServiceError(f"cannot copy {error.filename} for the MQTT broker: {error.strerror}") from error

    def _join_as(self, user: str) -> Broker:
        # Of two clients with one name the broker disconnects the older; it takes users for names.
        return Broker(str(self._socket), 0, user, user=user, password=self._passwords.set(user))

    async def _run_once(self) -> int:
        things = self._passwords.users() - {NOTIFIER, ADMINISTRATOR}
        replace_file(self._rules, configuration(things))
        self._administrator.knows(things)
        self._socket.unlink(missing_ok=True)
        command = [sys.executable, "-c", _EXEC, str(os.getpid()), self._program, "-c", str(self._configuration)]
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self._socket.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._process = process
        try:
            if process.stderr is not None:
                async for line in process.stderr:
                    said = line.decode(errors="replace").strip()
                    if "Error" in said:
                        self._last_error = f" ({said})"
                    _log.log(logging.WARNING if "Error" in said else logging.DEBUG, "mosquitto: %s", said)
            return await process.wait()
        finally:
            self._process = None
            await _end(process)

    async def _follow_enrolments(self) -> None:
        """Tell the broker when ``service add-thing``, another process, has changed the passwords."""
        seen = self._passwords.version()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            version = self._passwords.version()
            if version == seen:
                continue
            # The rules first, so that a thing that is let in is also let subscribe.
            if await self._administrator.tell(self._passwords.users() - {NOTIFIER, ADMINISTRATOR}):
                seen = version
                self._have_files_read_again()

    def _have_files_read_again(self) -> None:
        if self._process is not None:
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
    # It is started in another directory.
    return os.path.abspath(program)


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
