# SPDX-License-Identifier: GPL-3.0-or-later
"""A device: its own sshd with its own host key, its own HTTP server, and its own destination proxy."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .accounts import Accounts
from .process import Process, free_port, wait_for
from .service import TunnelingService

__all__ = ["Device", "Dropbear", "HttpServer", "Sshd", "make_ssh_key", "proxy_environment", "require_sshd"]


def require_sshd() -> str:
    """The path of OpenSSH's server; without it, fail and say how to install it."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if sshd is None:
        raise RuntimeError("sshd is not installed: sudo apt-get install openssh-server")
    return sshd


def make_ssh_key(path: Path) -> Path:
    """Make a key pair, and return the path of the private key."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)], check=True)
    return path


class Sshd:
    """A real OpenSSH server, by default on a loopback port, that accepts one key.

    Args:
        folder: the folder for its files.
        authorized_key: the private key that is accepted, with the public one next to it.
        host_key: its own private key; None to create one.
        accounts: its users, instead of this machine's; they log in with passwords.
        enter: the start of a command line that runs it elsewhere.
        host: the address to listen on.
        options: lines of its configuration that precede all others.
        sftp: whether it has the subsystem for file transfers.
    """

    def __init__(
        self,
        folder: Path,
        authorized_key: Path,
        host_key: Path | None = None,
        accounts: Accounts | None = None,
        enter: Sequence[str] = (),
        host: str = "127.0.0.1",
        options: Sequence[str] = (),
        sftp: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.host_key = host_key or make_ssh_key(folder / "host_key")
        authorized = folder / "authorized_keys"
        authorized.write_text(Path(f"{authorized_key}.pub").read_text())
        # Its own home: the shell start-up files of this machine's user are not part of a device. Files left behind by
        # the tasks of a killed test are removed with it.
        home = folder / "home"
        home.mkdir(exist_ok=True)
        environment = f"TMPDIR={home}" if accounts else f"HOME={home} TMPDIR={home}"
        config = folder / "sshd_config"
        subsystem = "Subsystem sftp internal-sftp\n" if sftp else ""
        # For this option, the last line applies, not the first.
        startups = "" if any(option.startswith("MaxStartups") for option in options) else "MaxStartups 100\n"
        config.write_text(
            "".join(f"{option}\n" for option in options)
            + f"ListenAddress {host}\nPort {self.port}\nHostKey {self.host_key}\nPidFile none\n"
            f"AuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication {'yes' if accounts else 'no'}\n"
            f"PermitRootLogin prohibit-password\n{subsystem}LogLevel VERBOSE\n{startups}"
            f"SetEnv {environment}\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command: list[str | Path] = [require_sshd(), "-D", "-e", "-f", config]
        command = [*enter, *(accounts.command(command) if accounts else command)]
        self.process = Process(command, folder / "sshd.log")
        self.process.wait_for_output("Server listening")

    def host_key_line(self, name: str) -> str:
        """The line of ``known_hosts`` for this server with a name."""
        kind, key, *_ = Path(f"{self.host_key}.pub").read_text().split()
        return f"{name} {kind} {key}\n"

    def stop(self) -> None:
        self.process.stop()


class Dropbear:
    """A real Dropbear on a loopback port, as on small devices: without sftp, and with scp only if it is installed.

    Args:
        folder: the folder for its files.
        authorized_key: the private key for root's login.
    """

    def __init__(self, folder: Path, authorized_key: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        key = self.host_key = folder / "dropbear_key"
        made = subprocess.run(["dropbearkey", "-t", "ed25519", "-f", key], capture_output=True, text=True, check=True)
        self._public_key = next(line for line in made.stdout.splitlines() if line.startswith("ssh-ed25519 "))
        # Dropbear looks for keys only in the home folder, so root's home differs from that on this machine.
        home = folder / "dropbear-home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        (home / ".ssh" / "authorized_keys").write_text(Path(f"{authorized_key}.pub").read_text())
        accounts = Accounts(folder / "dropbear-accounts", {}, homes={"root": home})
        command = ["dropbear", "-F", "-E", "-s", "-p", f"127.0.0.1:{self.port}", "-r", key, "-P", folder / "pid"]
        # Otherwise it would run OpenSSH's sftp-server, which this machine has.
        without = 'mount --bind /dev/null "$(readlink -f /usr/lib/sftp-server)"; exec "$@"'
        hidden: list[str | Path] = ["sh", "-c", without, "sh", *command]
        self.process = Process(accounts.command(hidden), folder / "dropbear.log")
        self.process.wait_for_output("Not backgrounding")

    def host_key_line(self, name: str) -> str:
        """The line of ``known_hosts`` for this server with a name."""
        kind, key, *_ = self._public_key.split()
        return f"{name} {kind} {key}\n"

    def stop(self) -> None:
        self.process.stop()


class HttpServer:
    """A real HTTP server on a loopback port, with one page."""

    def __init__(self, folder: Path, page: str) -> None:
        root = folder / "www"
        root.mkdir(parents=True, exist_ok=True)
        (root / "index.html").write_text(page)
        self.root = root
        self.port = free_port()
        command = [sys.executable, "-u", "-m", "http.server", "-b", "127.0.0.1", "-d", root, str(self.port)]
        self.process = Process(command, folder / "http.log")
        self.process.wait_for_output("Serving HTTP")

    def stop(self) -> None:
        self.process.stop()


def proxy_environment(service: TunnelingService, token: str) -> dict[str, str]:
    """The environment in which ``tunnelproxy`` connects one end of a tunnel to a service."""
    return {**os.environ, **service.environment, "AWSIOT_TUNNEL_ACCESS_TOKEN": token}


class Device:
    """A device. It is reachable only through the tunnel of its destination proxy.

    Args:
        enter: the start of a command line that runs its SSH server elsewhere.
        host: the address on which its SSH server listens.
        proxy_enter: the same for its destination proxy.
    """

    def __init__(
        self,
        thing: str,
        service: TunnelingService,
        folder: Path,
        authorized_key: Path,
        enter: Sequence[str] = (),
        host: str = "127.0.0.1",
        proxy_enter: Sequence[str] = (),
    ) -> None:
        self.thing = thing
        self._host = host
        self._proxy_enter = proxy_enter
        self.service = service
        self.folder = folder / thing
        self.ssh_key = authorized_key
        self.ssh_user = getpass.getuser()
        self.sshd: Sshd | Dropbear = Sshd(self.folder, authorized_key, enter=enter, host=host)
        self.http = HttpServer(self.folder, f"{thing} is well\n")
        self.proxy: Process | None = None

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_proxy()
        self.http.stop()
        self.sshd.stop()

    def start_proxy(self, destination_token: str) -> Process:
        """Start the destination proxy, and wait until it is connected."""
        addresses = f"SSH1={self._host}:{self.sshd.port},HTTP1=127.0.0.1:{self.http.port}"
        return self.start_proxy_at(destination_token, addresses)

    def start_proxy_at(self, destination_token: str, addresses: str) -> Process:
        """Start the destination proxy with these addresses, and wait until it is connected."""
        self.stop_proxy()
        log = self.folder / "proxy.log"
        log.unlink(missing_ok=True)
        command = [*self._proxy_enter, sys.executable, "-m", "tunnelproxy", "-d", addresses]
        self.proxy = Process(command, log, proxy_environment(self.service, destination_token))
        self.proxy.wait_for_output("connected to")
        return self.proxy

    def stop_proxy(self) -> None:
        if self.proxy is not None:
            self.proxy.stop()
            self.proxy = None

    def wait_connected(self, tunnel_id: str) -> None:
        """Wait until the service reports the destination as connected."""
        client = self.service.boto3_client()

        def connected() -> bool:
            tunnel = client.describe_tunnel(tunnelId=tunnel_id)["tunnel"]
            return bool(tunnel["destinationConnectionState"]["status"] == "CONNECTED")

        wait_for(connected, f"the destination of {tunnel_id} is connected")
