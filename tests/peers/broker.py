# SPDX-License-Identifier: GPL-3.0-or-later
"""A real MQTT broker: Mosquitto, with TLS and the documented access rules."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from tunnelproxy.service.state.certificates import Certificates

from .process import REPOSITORY, Process, free_port

__all__ = ["SERVICE_USER", "Mosquitto", "mosquitto_available"]

SERVICE_USER = "tunnel.notifier"


def mosquitto_available() -> str:
    """The path of Mosquitto; without it, fail and say how to install it."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise RuntimeError("mosquitto is not installed: sudo apt-get install mosquitto")
    return program


class Mosquitto:
    """Runs ``docs/mosquitto.conf`` on a loopback port. Its state outlives :meth:`kill` and :meth:`start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        certificates = Certificates(folder / "keys", folder / "ca")
        certificates.ensure("127.0.0.1")
        self.ca = folder / "ca" / "ca.pem"
        self.port = free_port()
        self.log = folder / "mosquitto.log"
        self._passwords = folder / "passwords"
        self._configuration = folder / "mosquitto.conf"
        self._configuration.write_text(self._configure(certificates))
        self.process: Process | None = None
        self.passwords = {SERVICE_USER: self._add(SERVICE_USER, create=True)}
        self.start()

    def __enter__(self) -> Mosquitto:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _configure(self, certificates: Certificates) -> str:
        text = (REPOSITORY / "docs" / "mosquitto.conf").read_text()
        for shipped, here in (
            ("listener 8883", f"listener {self.port} 127.0.0.1"),
            ("/etc/mosquitto/certs/server.pem", str(certificates.server_chain)),
            ("/etc/mosquitto/certs/server-key.pem", str(certificates.server_key)),
            ("/etc/mosquitto/passwords\n", f"{self._passwords}\n"),
            ("acl_file /etc/mosquitto/mosquitto.acl", f"acl_file {REPOSITORY / 'docs' / 'mosquitto.acl'}"),
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        # Started by root, Mosquitto would switch to a user who cannot read these files.
        as_root = "user root\n" if os.geteuid() == 0 else ""
        return f"{text}\npersistence_location {self._folder}/\n{as_root}"

    def _add(self, user: str, *, create: bool = False) -> str:
        password = secrets.token_urlsafe(16)
        options = ["-c"] if create else []
        subprocess.run(["mosquitto_passwd", *options, "-b", str(self._passwords), user, password], check=True)
        return password

    def add_user(self, user: str) -> str:
        """Add a user, and return the password."""
        self.passwords[user] = self._add(user)
        if self.process is not None:
            self.process.popen.send_signal(signal.SIGHUP)
        return self.passwords[user]

    def add_line(self, line: str) -> None:
        """Add a line to the password file, as an operator would."""
        with self._passwords.open("a") as file:
            file.write(line)
        if self.process is not None:
            self.process.popen.send_signal(signal.SIGHUP)

    def start(self) -> None:
        self.log.unlink(missing_ok=True)
        self.process = Process([mosquitto_available(), "-c", str(self._configuration)], self.log)
        self.process.wait_for_output(r"mosquitto version \S+ running")

    def kill(self) -> None:
        """Kill the broker, without a clean shutdown."""
        if self.process is not None:
            self.process.stop(signal.SIGKILL)
            self.process = None

    def saved(self) -> bytes:
        """The saved state, which it will have after :meth:`kill`."""
        database = self._folder / "mosquitto.db"
        return database.read_bytes() if database.exists() else b""

    def client(self, user: str, client_id: str = "", on_connect: Callable[..., None] | None = None) -> Client:
        """A connecting MQTT client; ``on_connect`` is paho's callback."""
        client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False)
        client.tls_set_context(ssl.create_default_context(cafile=str(self.ca)))
        client.username_pw_set(user, self.passwords[user])
        client.on_connect = on_connect
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        return client

    def notify(self, thing: str, payload: bytes | dict[str, Any]) -> None:
        """Publish like the tunneling service, and wait until the broker has the message."""
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        client = self.client(SERVICE_USER)
        try:
            client.publish(f"$aws/things/{thing}/tunnels/notify", content, qos=1).wait_for_publish(10)
        finally:
            client.disconnect()
            client.loop_stop()
