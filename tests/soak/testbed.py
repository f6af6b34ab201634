# SPDX-License-Identifier: GPL-3.0-or-later
"""The testbed of a soak: a tunneling service with its broker, devices with agents, and a controller.

The devices are in a network namespace, so that the network between them and the service can fail. The folders that
fill up are small file systems. A supervisor restarts processes, as systemd does in production, and records those that
exited without being killed by a fault.

All files are below one folder, and its path is in the environment of every process started. That is how leftovers are
found and removed, even those of a soak that was killed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from peers.agent import AgentProcess
from peers.collection import Controller
from peers.credentials import Keys, add_keys, remove_keys, without_keys
from peers.device import Sshd, make_ssh_key
from peers.fleet import AT_ONCE
from peers.namespace import NetworkNamespace
from peers.process import Process, free_port, wait_for
from peers.service import TunnelingService
from tunnelproxy.hub import client as hub

from .record import Record

__all__ = ["DUAL_NAME", "Device", "SmallDisk", "Testbed", "remove_leftovers"]

PREFIX = "soak-"
PAGE_BYTES = 64 * 1024
HUB_DISK = "32m"
STATE_DISK = "256m"
RESTART_SECONDS = 2.0
"""How long the supervisor waits before it restarts a process."""

DUAL_NAME = "localhost"
"""A name with two addresses in the devices' namespace, the first of which a fault makes unreachable. It is also the
only name that an agent accepts for its own device."""


@dataclass(frozen=True)
class SmallDisk:
    """A small file system that can be filled."""

    path: Path

    def fill(self) -> None:
        """Use all free space."""
        free = os.statvfs(self.path)
        with (self.path / "filler").open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        # And what was freed meanwhile.
        with (self.path / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))

    def free(self) -> None:
        """Free the space that :meth:`fill` used."""
        (self.path / "filler").unlink(missing_ok=True)


@dataclass
class Device:
    """A thing with an SSH server, an HTTP server, and an agent."""

    thing: str
    sshd: Sshd
    http: Process
    http_port: int
    page: bytes
    agent: AgentProcess


class Testbed:
    """A context manager: inside, the agent of every device is waiting for tunnels.

    Args:
        record: where to record unexpected exits.
        size: the number of devices.
    """

    def __init__(self, record: Record, size: int) -> None:
        self.record = record
        self.things = tuple(f"pump-{number}" for number in range(1, size + 1))
        self.devices: dict[str, Device] = {}
        self._stack = ExitStack()
        self._ending = threading.Event()
        self._expected: set[int] = set()
        self.secrets: set[str] = set()
        """Values that must not appear in logs or on command lines."""

    def __enter__(self) -> Testbed:
        with ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            (self.folder / "pid").write_text(str(os.getpid()))
            self._use_folder()
            stack.callback(_end_processes, self.folder)
            self.work = self.folder / "work"
            self.work.mkdir()
            self._make_network(stack)
            self.service = TunnelingService("--host", self.network.here, "--mqtt-port", "0")
            stack.callback(self.service.remove)
            self.state_disk = self._mount(stack, self.service.state_dir, STATE_DISK)
            self.service.start()
            self._key = make_ssh_key(self.folder / "key")
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for device in pool.map(lambda thing: self._make_device(thing, stack), self.things):
                    self.devices[device.thing] = device
            self._make_controller(stack)
            supervisor = threading.Thread(target=self._supervise, daemon=True)
            supervisor.start()
            stack.callback(supervisor.join, 60)
            stack.callback(self._ending.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Set-up

    def _use_folder(self) -> None:
        """Make all processes write temporary files below the folder."""
        temporary = self.folder / "tmp"
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.environ["IOTOPS_TUNNEL_DIR"] = str(self.folder / "hub")
        os.environ.pop("XDG_RUNTIME_DIR", None)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

    def _make_network(self, stack: ExitStack) -> None:
        self.network = stack.enter_context(NetworkNamespace())
        (self.folder / "namespace").write_text(self.network.name)
        # `ip netns exec` mounts it over /etc/hosts.
        hosts = Path("/etc/netns") / self.network.name
        hosts.mkdir(parents=True)
        stack.callback(shutil.rmtree, hosts, ignore_errors=True)
        (hosts / "hosts").write_text(f"::1 {DUAL_NAME}\n127.0.0.1 {DUAL_NAME}\n")

    def _mount(self, stack: ExitStack, path: Path, size: str) -> SmallDisk:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "soak", path], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", path], check=False, capture_output=True)
        return SmallDisk(path)

    def _make_device(self, thing: str, stack: ExitStack) -> Device:
        folder = self.folder / thing
        sshd = Sshd(folder, self._key, enter=self.network.enter)
        stack.callback(sshd.stop)
        page = random.Random(thing).randbytes(PAGE_BYTES)
        root = folder / "www"
        root.mkdir()
        (root / "index.html").write_bytes(page)
        port = free_port()
        server = [sys.executable, "-u", "-m", "http.server", "-b", "127.0.0.1", "-d", root, str(port)]
        http = Process([*self.network.enter, *server], folder / "http.log")
        http.wait_for_output("Serving HTTP")
        name = DUAL_NAME if thing == self.things[-1] else "127.0.0.1"
        services = f"SSH1={name}:{sshd.port},HTTP1=127.0.0.1:{port}"
        self.service.add_thing(thing, folder / "agent", "--services", services)
        with (folder / "agent" / "agent.yml").open("a") as configuration:
            configuration.write("state_dir: state\n")  # what systemd's StateDirectory does in production
        agent = AgentProcess(folder / "agent", enter=self.network.enter)
        stack.callback(agent.stop)
        agent.start()
        self.secrets.add((folder / "agent" / "password").read_text().strip())
        device = Device(thing, sshd, http, port, page, agent)
        stack.callback(lambda: device.http.stop())  # noqa: PLW0108  it may have been replaced by then
        return device

    def _make_controller(self, stack: ExitStack) -> None:
        self._profile = self.folder / "credentials"
        self._keys: Keys | None = None
        self.renew_credentials()
        environment = {
            **without_keys(self.service.environment),
            "AWS_SHARED_CREDENTIALS_FILE": str(self._profile),
            "AWS_PROFILE": "soak",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.secrets.add(self.service.environment["AWS_SECRET_ACCESS_KEY"])
        variables = {"ansible_user": getpass.getuser(), "ansible_ssh_private_key_file": str(self._key)}
        hosts: dict[str, dict[str, Any]] = {thing: {} for thing in self.things}
        self.controller = Controller(environment, hosts, variables)
        self.controller.environment["IOTOPS_TUNNEL_DIR"] = os.environ["IOTOPS_TUNNEL_DIR"]
        self.controller.known_hosts.write_text(
            "".join(device.sshd.host_key_line(thing) for thing, device in self.devices.items())
        )
        self.hub_disk = self._mount(stack, self.folder / "hub", HUB_DISK)
        stack.callback(self._end_controller)
        self.caller = hub.Caller(self.controller.environment, str(self.folder))

    def _end_controller(self) -> None:
        with contextlib.suppress(Exception):
            self.controller.disconnect()
        with contextlib.suppress(Exception):
            hub.stop()

    def renew_credentials(self) -> Callable[[], None]:
        """Give the operator a new access key, and return a function that removes the old one."""
        before, number = self._keys, 1 + len(self.secrets)
        self._keys = add_keys(self.service, f"operator-{number}")
        self.secrets.add(self._keys.secret_access_key)
        new = self._profile.with_suffix(".new")
        new.write_text(
            f"[soak]\naws_access_key_id = {self._keys.access_key_id}\n"
            f"aws_secret_access_key = {self._keys.secret_access_key}\n"
        )
        new.replace(self._profile)
        return lambda: remove_keys(self.service, before) if before else None

    # Use

    def reach(self, thing: str, service: str = "SSH1", *, seconds: float = 20.0) -> None:
        """Open a connection to a device, and a tunnel if there is none, as an operator does.

        Raises:
            HubError: the device cannot be reached.
        """
        row = hub.ensure(thing, service, open_policy="reuse", wait=seconds, timeout=10.0, caller=self.caller)
        os.close(hub.open_stream(thing, "SSH1", account=row["account"], timeout=seconds))

    def ensure(self, thing: str, service: str) -> dict[str, Any]:
        """The hub's row for the tunnel, which is opened if there is none.

        Raises:
            HubError: there is no tunnel, and none can be opened.
        """
        return hub.ensure(thing, service, open_policy="reuse", wait=20.0, timeout=10.0, caller=self.caller)

    def ssh(self, thing: str, account: str) -> list[str]:
        """The command line of an interactive ssh session to a device, through the hub."""
        connector = " ".join(hub.connector_command(thing, "SSH1", account=account))
        options = {
            "ProxyCommand": connector,
            "ProxyUseFdpass": "yes",
            "ControlPath": "none",
            "UserKnownHostsFile": str(self.controller.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", "-tt", "-i", str(self._key), *words, f"{getpass.getuser()}@{thing}"]

    def open_tunnels(self, thing: str) -> list[str]:
        """The IDs of a device's open tunnels, as the service lists them."""
        answer = self.service.boto3_client().list_tunnels(thingName=thing)
        return [each["tunnelId"] for each in answer["tunnelSummaries"] if each["status"] == "OPEN"]

    def close_tunnels(self, thing: str) -> None:
        """Close a device's tunnels, as another operator would."""
        for tunnel in self.open_tunnels(thing):
            self.service.boto3_client().close_tunnel(tunnelId=tunnel)

    def hub_pid(self) -> int | None:
        """The hub's process ID, or None if it does not answer."""
        with contextlib.suppress(hub.HubError):
            status = hub.status()
            return int(status["pid"]) if status else None
        return None

    def hub_processes(self) -> list[psutil.Process]:
        """Every hub process, even one that does not answer."""
        return [process for process in ours(self.folder) if is_hub(process)]

    def broker(self) -> psutil.Process | None:
        """The service's broker."""
        with contextlib.suppress(psutil.Error, AssertionError):
            for child in psutil.Process(self.service.pid).children():
                if child.name() == "mosquitto" and child.status() != psutil.STATUS_ZOMBIE:
                    return child
        return None

    def processes(self) -> dict[str, psutil.Process]:
        """The long-running processes, by name."""
        found: dict[str, psutil.Process] = {}
        with contextlib.suppress(psutil.Error, AssertionError):
            found["service"] = psutil.Process(self.service.pid)
        broker, hub_pid = self.broker(), self.hub_pid()
        if broker:
            found["broker"] = broker
        with contextlib.suppress(psutil.Error):
            if hub_pid:
                found["hub"] = psutil.Process(hub_pid)
        for thing, device in self.devices.items():
            with contextlib.suppress(psutil.Error, AssertionError):
                found[f"agent {thing}"] = psutil.Process(device.agent.pid)
        return found

    # Supervision

    def kill(self, pid: int) -> None:
        """Kill a process. The supervisor restarts it and does not record the exit."""
        self._expected.add(pid)
        os.kill(pid, signal.SIGKILL)

    def _supervise(self) -> None:
        while not self._ending.wait(0.5):
            try:
                self._restart_exited()
            except Exception as error:
                self.record.note(f"the supervisor could not restart a process: {error}")
                self._ending.wait(5)

    def _restart_exited(self) -> None:
        service = self.service._process
        if service is None or service.poll() is not None:
            if service is not None:
                self._note_exit("the service", service.pid, service.returncode)
            if not self._ending.wait(RESTART_SECONDS):
                self.service.start()
        for thing, device in self.devices.items():
            agent = device.agent.process
            if agent is not None and agent.popen.poll() is not None:
                self._note_exit(f"the agent of {thing}", agent.pid, agent.popen.returncode)
                if not self._ending.wait(RESTART_SECONDS):
                    device.agent.process = Process(agent.command, agent.log)

    def _note_exit(self, what: str, pid: int, status: int | None) -> None:
        if pid not in self._expected:
            self.record.note(f"{what} (process {pid}) exited unexpectedly with status {status}")

    @contextlib.contextmanager
    def no_sshd(self, thing: str) -> Iterator[None]:
        """Inside, a device's SSH server does not listen; its sessions continue."""
        device = self.devices[thing]
        device.sshd.stop()
        try:
            yield
        finally:
            device.sshd.process = _restart(device.sshd.process, "Server listening")

    @contextlib.contextmanager
    def no_http(self, thing: str) -> Iterator[None]:
        """Inside, a device's HTTP server does not listen."""
        device = self.devices[thing]
        device.http.stop()
        try:
            yield
        finally:
            device.http = _restart(device.http, "Serving HTTP")


def ours(folder: Path) -> list[psutil.Process]:
    """All processes with the folder in their environment, except this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            names = process.environ()
            if process.pid != os.getpid() and _belongs(names, folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def is_hub(process: psutil.Process) -> bool:
    """Whether a process is a hub, as opposed to one of its control processes."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return "hub" in words and "run" in words and "--background" in words
    return False


def _belongs(names: Mapping[str, str], folder: Path) -> bool:
    return any(str(value).startswith(str(folder)) for value in names.values())


def _restart(ended: Process, until: str) -> Process:
    """Start a process with the same command, and wait until it logs the text once more."""
    before = ended.output().count(until)
    process = Process(ended.command, ended.log)
    wait_for(lambda: process.output().count(until) > before, f"{until!r} in {process.log}")
    return process


def _end_processes(folder: Path) -> None:
    """Kill the remaining processes by their IDs."""
    for process in ours(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


def remove_leftovers() -> None:
    """Remove what killed soaks left behind."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            if psutil.pid_exists(int((folder / "pid").read_text())):
                continue
            _end_processes(folder)
            for mount in _mounts_below(folder):
                subprocess.run(["umount", "--lazy", mount], check=False)
            name = (folder / "namespace").read_text() if (folder / "namespace").exists() else ""
            if name:
                for command in (["ip", "link", "delete", name], ["ip", "netns", "delete", name]):
                    subprocess.run(command, check=False, capture_output=True)
                shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}/")]
