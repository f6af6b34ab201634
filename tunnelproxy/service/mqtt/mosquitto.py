# SPDX-License-Identifier: Apache-2.0
"""The embedded MQTT broker: Mosquitto, as a child process.

There is no suitable broker in Python: amqtt, the only maintained one, does not run on Python 3.9, requires an exact
version of websockets, and is known to leak memory (its issue 123). Mosquitto is small, in every distribution, and what
an operator would use anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from ...files import replace_file
from ...net.background_tasks import spawn
from ...net.backoff import Backoff
from ...net.mqtt import BrokerLogin
from ...net.reasons import reason
from ..errors import ServiceError
from .dynsec_client import DynsecClient
from .dynsec_rules import ADMINISTRATOR, NOTIFIER, configuration
from .listener import MqttListener
from .password_file import PasswordFile

__all__ = ["Mosquitto"]

_START_SECONDS = 10.0
_STABLE_SECONDS = 10.0
"""After running this long, the broker counts as started: if it exits then, the backoff starts from the beginning."""

_WATCH_SECONDS = 0.5
_STOP_SECONDS = 3.0
_MAX_SOCKET_PATH = 107
"""Bytes; unix(7)."""

# All clients connect through the Unix socket, which is in a directory of the service; things first connect to the TLS
# port of MqttListener. Mosquitto runs in that directory, because a socket's path must not contain a space here.
# dlopen(3) finds the plugin. use_username_as_clientid is an option of the listener above it, not of the broker.
_CONFIGURATION = """\
# Written by "tunnelproxy service run" at each start. docs/mosquitto.conf explains the settings.
listener 0 {socket}
use_username_as_clientid true
allow_anonymous false
password_file {passwords}
plugin mosquitto_dynamic_security.so
plugin_opt_config_file {rules}
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

# The kernel terminates the broker with the service, even if the service is killed: 1 is PR_SET_PDEATHSIG (prctl(2)).
_EXEC = """\
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
except (AttributeError, OSError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

log = logging.getLogger(__name__)


class Mosquitto:
    """Runs Mosquitto, and restarts it when it exits.

    Args:
        directory: the directory of its files.
        host: the address to listen on.
        port: the port to listen on; 0 for any free one.

    Raises:
        ServiceError: Mosquitto is not installed, the port is taken, or the files cannot be written.
    """

    def __init__(self, directory: Path, host: str, port: int) -> None:
        self._program = _find_mosquitto()
        self._socket = directory / "socket"
        if len(os.fsencode(self._socket)) > _MAX_SOCKET_PATH:
            raise ServiceError(f"{self._socket} is too long for a socket; give --state-dir a shorter path")
        self._passwords = PasswordFile(directory / "passwords")
        self._rules = directory / "dynamic-security.json"
        self._configuration = directory / "mosquitto.conf"
        self._database = directory / "mosquitto.db"
        self._process: asyncio.subprocess.Process | None = None
        self._last_error = ""
        self._last_warning = ""
        with _writing():
            directory.mkdir(mode=0o700, exist_ok=True)
            # From earlier versions, in which Mosquitto terminated TLS.
            for copy in ("server.pem", "server-key.pem"):
                (directory / copy).unlink(missing_ok=True)
            self.notifier_login = self._login_of(NOTIFIER)
            """How the service connects to publish notifications."""
            self._administrator = DynsecClient(self._login_of(ADMINISTRATOR))
            self._write_configuration(directory)
        self.listener = MqttListener(host, port, self._socket)
        """The port that things connect to."""

    def _write_configuration(self, directory: Path) -> None:
        content = _CONFIGURATION.format(
            socket=self._socket.name,
            passwords=self._passwords.path,
            rules=self._rules,
            directory=directory,
            # Started by root, it would switch to a user who cannot read these files.
            user="user root" if os.geteuid() == 0 else "",
        )
        replace_file(self._configuration, content.encode())

    async def run(self) -> None:
        """Keep the broker running until cancelled, then stop it."""
        clients = [
            spawn("updating the MQTT broker's rules", self._administer()),
            spawn("watching for enrolments", self._follow_enrolments()),
        ]
        broker = asyncio.create_task(self._keep_running())
        try:
            await asyncio.shield(broker)
        finally:
            # The broker last: its clients would warn that it has gone.
            for task in (*clients, broker):
                task.cancel()
                await asyncio.wait({task})

    async def _keep_running(self) -> None:
        backoff = Backoff()
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            cause = await self._run_once()
            if loop.time() - began > _STABLE_SECONDS:
                backoff.reset()
            delay = backoff.next_delay()
            self._warn(f"{cause}; starting it again until it runs")
            await asyncio.sleep(delay)

    async def wait_until_it_listens(self) -> None:
        """Wait until the broker has started.

        Raises:
            ServiceError: it does not start.
        """
        try:
            await asyncio.wait_for(self._until_it_listens(), _START_SECONDS)
        except asyncio.TimeoutError as error:
            raise ServiceError(
                f"mosquitto does not start{self._last_error}; see what it says: "
                f"cd {shlex.quote(str(self._socket.parent))} && {self._program} -c {self._configuration.name}"
            ) from error

    async def _until_it_listens(self) -> None:
        while True:
            try:
                # This is the last step of its start.
                _, writer = await asyncio.open_unix_connection(str(self._socket))
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return

    async def _administer(self) -> None:
        # A service that starts should not warn that its own broker is not there yet.
        await self._until_it_listens()
        await self._administrator.run()

    def _login_of(self, user: str) -> BrokerLogin:
        # User names are client IDs, and the broker disconnects the older of two clients with one ID: hence two users.
        return BrokerLogin(str(self._socket), 0, user, user=user, password=self._passwords.set(user))

    async def _run_once(self) -> str:
        """Run the broker, and return why it exited or did not start."""
        self._last_error = ""
        try:
            status = await self._run_process()
        except OSError as error:
            self._last_error = f" ({_words(error)})"
            return f"mosquitto cannot be started: {_words(error)}"
        if "database" in self._last_error:
            self._rename_damaged_database()
        return f"mosquitto exited with status {status}{self._last_error}"

    async def _run_process(self) -> int:
        things = self._passwords.users() - {NOTIFIER, ADMINISTRATOR}
        replace_file(self._rules, configuration(things))
        self._administrator.assume(things)
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
                    self._note(line.decode(errors="replace").strip())
            return await process.wait()
        finally:
            self._process = None
            await _end(process)

    def _note(self, said: str) -> None:
        if "Error" in said:
            self._last_error = f" ({said})"
            self._warn(f"mosquitto: {said}")
        else:
            log.debug("mosquitto: %s", said)

    def _rename_damaged_database(self) -> None:
        """Let the broker start without its database: a full disk can leave half a file, which it rejects."""
        renamed = self._database.with_name(f"{self._database.name}.damaged")
        with contextlib.suppress(OSError):
            self._database.replace(renamed)
            log.error(
                "%s is damaged and was renamed to %s: notifications for devices that are offline are lost; rotate the "
                "destination tokens of their tunnels",
                self._database,
                renamed.name,
            )

    async def _follow_enrolments(self) -> None:
        """Update the broker when ``service add-thing``, another process, has changed the passwords."""
        seen: tuple[int, int] | None = None
        with contextlib.suppress(OSError):
            seen = self._passwords.version()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                version = self._passwords.version()
                # The rules first, so that a thing that can connect can also subscribe.
                if version != seen and await self._administrator.update(
                    self._passwords.users() - {NOTIFIER, ADMINISTRATOR}
                ):
                    seen = version
                    self._reload()
            except OSError as error:
                self._warn(f"cannot pass new enrolments to the MQTT broker: {_words(error)}")

    def _reload(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    def _warn(self, warning: str) -> None:
        """Log a warning, but not every few seconds all night while the disk is full."""
        level = logging.DEBUG if warning == self._last_warning else logging.WARNING
        self._last_warning = warning
        log.log(level, "%s", warning)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceError(f"cannot write the MQTT broker's files: {_words(error)}") from error


def _words(error: OSError) -> str:
    return f"{error.filename}: {reason(error)}" if error.filename else reason(error)


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
    # The PATH of an ordinary user has no sbin.
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
    if program is None:
        raise ServiceError(
            "mosquitto is not installed, but --mqtt-port requires it: install it (Debian: sudo apt-get install "
            "mosquitto), or use an external broker with --mqtt-broker"
        )
    # It is started in another working directory.
    return os.path.abspath(program)
