# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults of a soak: what each does, how long it lasts, which devices it may affect, and how soon they must recover.

Users must not notice a fault that affects no device.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPSConnection
from typing import ClassVar
from urllib.parse import urlsplit

import psutil
from botocore.exceptions import BotoCoreError, ClientError
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from peers.process import wait_for
from tunnelproxy.hub import client as hub
from tunnelproxy.hub.location import SOCKET_NAME

from .load import load_page
from .record import Window
from .testbed import Testbed

__all__ = ["FAULTS", "Fault", "Rotation"]

LONGEST_PROBE = 60.0
"""How long to keep probing after the time allowed, so that the report can tell how long the recovery took."""


class Fault:
    """One kind of fault. ``injected`` is a context manager: the fault lasts while it is open.

    Attributes:
        name: the name in ``SOAK_FAULTS`` and in the report.
        duration: how long it lasts, in seconds.
        recovers_within: seconds after its end within which all devices must have recovered.
        every: it is injected in every nth round. A process killed in every round would not live long enough for its
            growth to show.
        in_background: whether the next faults are injected without waiting for its end.
    """

    name: ClassVar[str]
    duration: ClassVar[float] = 15.0
    recovers_within: ClassVar[float] = 30.0
    every: ClassVar[int] = 1
    in_background: ClassVar[bool] = False

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.measurements: dict[str, float] = {}
        self.violation = ""

    @property
    def all(self) -> frozenset[str]:
        """All devices."""
        return frozenset(self.testbed.things)

    def thing(self, index: int) -> str:
        """A device, by index. Each of the last devices has one fault only."""
        return self.testbed.things[index % len(self.testbed.things)]

    def affected(self) -> frozenset[str]:
        """Devices on which new work may fail."""
        return frozenset()

    def disconnected(self) -> frozenset[str]:
        """Devices whose established connections may end."""
        return frozenset()

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        """Inject the fault, and remove it on exit."""
        raise NotImplementedError
        yield

    def wait(self) -> None:
        """Wait while the fault lasts."""
        time.sleep(self.duration)

    def recovered(self) -> None:
        """Check what else must have recovered, once all devices can be reached.

        Raises:
            AssertionError: something has not recovered.
        """

    def run(self) -> Window:
        """Inject the fault, remove it, and verify that everything recovers in time."""
        window = self.testbed.record.open_window(self.name, self.affected(), self.disconnected())
        try:
            with self.injected():
                self.wait()
        except Exception as error:
            window.violation = f"{type(error).__name__}: {' '.join(str(error).split())}"
        window.removed = time.time()
        self._wait_until_recovered(window)
        window.measurements = self.measurements
        window.violation = window.violation or self.violation
        return window

    def _wait_until_recovered(self, window: Window) -> None:
        problem = self._probe()
        while problem and time.time() - window.removed < self.recovers_within + LONGEST_PROBE:
            time.sleep(0.5)
            problem = self._probe()
        window.recovered = time.time()
        took = window.recovered - window.removed
        if problem:
            window.violation = f"not recovered after {took:.0f} s: {problem}"
            window.disconnected = window.affected = self.all
            self._rescue()
            window.recovered = time.time()
        elif took > self.recovers_within:
            window.violation = f"recovered after {took:.0f} s; the limit is {self.recovers_within:.0f} s"

    def _probe(self) -> str:
        """What has not recovered; empty if everything has."""
        with ThreadPoolExecutor(5) as pool:
            problems = [problem for problem in pool.map(self._reach, self.testbed.things) if problem]
        if problems:
            return "; ".join(problems[:3])
        try:
            self.recovered()
        except (AssertionError, OSError, hub.HubError, HTTPException, BotoCoreError, ClientError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _reach(self, thing: str) -> str:
        if any(thing in window.disconnected | window.affected for window in self._others()):
            return ""
        try:
            self.testbed.reach(thing)
        except (hub.HubError, OSError) as error:
            return f"{thing}: {error}"
        return ""

    def _others(self) -> list[Window]:
        """Other faults that have not recovered."""
        return [each for each in self.testbed.record.windows if not each.recovered and each.fault != self.name]

    def _rescue(self) -> None:
        """Kill what may be stuck, as an operator would in the end, so that later faults start from a working state."""
        for process in self.testbed.hub_processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self._probe():
            with contextlib.suppress(ProcessLookupError, AssertionError):
                self.testbed.kill(self.testbed.service.pid)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: not self._probe(), "a new hub and a new service work", LONGEST_PROBE)
        for thing in self.testbed.things:
            if self._reach(thing):
                with contextlib.suppress(hub.HubError, OSError, ClientError, BotoCoreError):
                    self.open_another(thing)

    def open_another(self, thing: str) -> None:
        """Close a device's tunnel and have the hub open a new one, which takes all processes."""
        self.testbed.close_tunnels(thing)
        self.testbed.reach(thing)


class _OneReopened(Fault):
    """A fault that has recovered when a new tunnel to one device can be opened."""

    index: ClassVar[int]
    _opened = False

    def affected(self) -> frozenset[str]:
        return frozenset({self.thing(self.index)})

    disconnected = affected

    def recovered(self) -> None:
        if not self._opened:
            self.open_another(self.thing(self.index))
            self._opened = True


class HubFolderFull(_OneReopened):
    """Open tunnels keep working, and a tunnel opened during the fault is not lost."""

    name = "hub-folder-full"
    index = 1

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.testbed.hub_disk.fill()
        try:
            with contextlib.suppress(hub.HubError):
                self.open_another(self.thing(self.index))
            yield
        finally:
            self.testbed.hub_disk.free()


class StateFolderFull(_OneReopened):
    """A tunnel that expires while the disk is full is closed afterwards."""

    name = "state-folder-full"
    index = 2
    duration = 20.0
    recovers_within = 60.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        client = self.testbed.service.boto3_client()
        timeout = {"maxLifetimeTimeoutMinutes": 1}
        self._canary = client.open_tunnel(description="expires while the disk is full", timeoutConfig=timeout)[
            "tunnelId"
        ]
        time.sleep(50)
        self.testbed.state_disk.fill()
        try:
            with contextlib.suppress(hub.HubError, ClientError, BotoCoreError):
                self.open_another(self.thing(self.index))
            yield
        finally:
            self.testbed.state_disk.free()

    def recovered(self) -> None:
        answer = self.testbed.service.boto3_client().describe_tunnel(tunnelId=self._canary)
        assert answer["tunnel"]["status"] == "CLOSED", "a tunnel did not expire"
        super().recovered()


class _AllAffected(Fault):
    def affected(self) -> frozenset[str]:
        return self.all


class _AllDisconnected(_AllAffected):
    def disconnected(self) -> frozenset[str]:
        return self.all


class HubSocketRemoved(_AllAffected):
    """As a program that cleans up temporary folders may do."""

    name = "hub-socket-removed"
    duration = 3.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        sockets = list(self.testbed.hub_disk.path.glob("*.sock"))
        assert sockets, "the hub has no socket"
        for path in sockets:
            path.unlink()
        yield

    def recovered(self) -> None:
        hubs = self.testbed.hub_processes()
        assert len(hubs) == 1, f"there are {len(hubs)} hubs"


@contextlib.contextmanager
def _no_descriptors(pid: int) -> Iterator[None]:
    """Inside, the process cannot open another descriptor."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


class HubDescriptors(_AllAffected):
    """Established connections keep working while new ones arrive."""

    name = "hub-descriptors"
    recovers_within = 40.0
    connections: ClassVar[int] = 40

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        pid = self.testbed.hub_pid()
        assert pid is not None, "no hub answers"
        with contextlib.ExitStack() as stack, _no_descriptors(pid):
            path = str(self.testbed.hub_disk.path / SOCKET_NAME)
            for _ in range(self.connections):
                with contextlib.suppress(OSError):
                    each = stack.enter_context(socket.socket(socket.AF_UNIX))
                    each.settimeout(0.2)
                    each.connect(path)
            yield


class ServiceDescriptors(_AllAffected):
    """Connected tunnels keep working while new connections arrive at every listener."""

    name = "service-descriptors"

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        ports = (urlsplit(self.testbed.service.api).port, int(self.testbed.service.data.rsplit(":", 1)[1]))
        with contextlib.ExitStack() as stack, _no_descriptors(self.testbed.service.pid):
            for port in ports * 10:
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection((self.testbed.network.here, port or 0), timeout=1))
            yield


class BrokerKilled(_OneReopened):
    """The service restarts it."""

    name = "broker-killed"
    index = 3
    duration = 1.0
    recovers_within = 40.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.kill_broker()
        yield

    def kill_broker(self) -> None:
        """Kill the broker."""
        broker = self.testbed.broker()
        assert broker is not None, "there is no broker"
        broker.kill()


class BrokerKilledDiskFull(BrokerKilled):
    """The service restarts it as soon as it can write again."""

    name = "broker-killed-disk-full"
    duration = 15.0
    recovers_within = 60.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.testbed.state_disk.fill()
        try:
            self.kill_broker()
            yield
        finally:
            self.testbed.state_disk.free()


class ServiceKilled(_AllDisconnected):
    name = "service-killed"
    duration = 1.0
    every = 3

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.testbed.kill(self.testbed.service.pid)
        yield


class HubKilled(_AllDisconnected):
    name = "hub-killed"
    duration = 1.0
    recovers_within = 20.0
    every = 3

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        pid = self.testbed.hub_pid()
        assert pid is not None, "no hub answers"
        os.kill(pid, signal.SIGKILL)
        yield


class _One(Fault):
    """A fault of a single device."""

    index: ClassVar[int]

    def affected(self) -> frozenset[str]:
        return frozenset({self.thing(self.index)})


class AgentKilled(_One):
    name = "agent-killed"
    index = -3
    duration = 1.0

    disconnected = _One.affected

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.testbed.kill(self.testbed.devices[self.thing(self.index)].agent.pid)
        yield


class AgentFrozen(_One):
    """For longer than any timeout; its connections may end or continue."""

    name = "agent-frozen"
    index = -2
    duration = 90.0
    recovers_within = 60.0
    in_background = True

    disconnected = _One.affected

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with _frozen(self.testbed.devices[self.thing(self.index)].agent.pid):
            yield


class SshdRestarted(_One):
    """Its sessions continue, as they do with OpenSSH."""

    name = "sshd-restarted"
    index = 0
    duration = 3.0
    recovers_within = 15.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with self.testbed.no_sshd(self.thing(self.index)):
            yield


class PortRefuses(_One):
    """The device's HTTP server is down; SSH to the device works."""

    name = "port-refuses"
    index = -5
    duration = 10.0
    recovers_within = 10.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with self.testbed.no_http(self.thing(self.index)):
            yield

    def recovered(self) -> None:
        _check_page(self.testbed, self.thing(self.index))


class NetworkFlaps(Fault):
    """Between all devices and the service, so briefly that users notice no more than a delay."""

    name = "network-flaps"
    duration = 5.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.testbed.network.drop_packets()
        try:
            yield
        finally:
            self.testbed.network.pass_packets()


@contextlib.contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class ServiceFrozen(Fault):
    """So briefly that users notice no more than a delay."""

    name = "service-frozen"
    duration = 10.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with _frozen(self.testbed.service.pid):
            yield


class HubFrozen(_AllAffected):
    """New work may time out; connections continue."""

    name = "hub-frozen"
    duration = 10.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        pid = self.testbed.hub_pid()
        assert pid is not None, "no hub answers"
        with _frozen(pid):
            yield


class UnsignedFlood(Fault):
    """Requests without a key. Other users do not notice, and few of the requests are logged."""

    name = "unsigned-flood"
    duration = 20.0
    clients: ClassVar[int] = 3
    pause: ClassVar[float] = 0.01
    written_at_most: ClassVar[int] = 512 * 1024

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        ending = threading.Event()
        before = self._written()
        with ThreadPoolExecutor(self.clients) as pool:
            floods = [pool.submit(self._flood, ending) for _ in range(self.clients)]
            try:
                yield
            finally:
                ending.set()
                sent = sum(flood.result() for flood in floods)
        written = self._written() - before
        self.measurements = {"requests": sent, "bytes written": written}
        # This includes what is logged for the regular load.
        if written > self.written_at_most:
            self.violation = (
                f"{sent} unsigned requests caused {written} bytes of logs; the limit is {self.written_at_most}"
            )

    def _written(self) -> int:
        log = self.testbed.service._log
        return sum(path.stat().st_size for path in (log, *self.testbed.service.state_dir.glob("audit.log*")))

    def _flood(self, ending: threading.Event) -> int:
        context = ssl.create_default_context(capath=self.testbed.service.ca)
        address, sent = urlsplit(self.testbed.service.api).netloc, 0
        while not ending.is_set():
            connection = HTTPSConnection(address, timeout=5, context=context)
            with contextlib.suppress(OSError, HTTPException):
                while not ending.wait(self.pause):
                    connection.request("POST", "/", b"{}", {"X-Amz-Target": "IoTSecuredTunneling.ListTunnels"})
                    connection.getresponse().read()
                    sent += 1
            connection.close()
            ending.wait(0.1)
        return sent


class PageFlood(_One):
    """As a broken script of another user of this machine may do; other devices are not affected."""

    name = "page-flood"
    index = -6
    duration = 20.0
    recovers_within = 15.0
    connections: ClassVar[int] = 200

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        row = self.testbed.ensure(self.thing(self.index), "HTTP1")
        port = row["services"]["HTTP1"]["port"]
        with contextlib.ExitStack() as stack:
            for _ in range(self.connections):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
            yield

    def recovered(self) -> None:
        _check_page(self.testbed, self.thing(self.index))


class HalfOpenMqtt(_One):
    """Connections that send nothing; an agent that starts meanwhile can still connect."""

    name = "half-open-mqtt"
    index = -3
    duration = 5.0
    connections: ClassVar[int] = 300
    connects_within: ClassVar[float] = 60.0

    disconnected = _One.affected

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        host, port = self.testbed.service.mqtt.rsplit(":", 1)
        with contextlib.ExitStack() as stack:
            for _ in range(self.connections):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection((host.rpartition("//")[2], int(port)), timeout=2))
            agent = self.testbed.devices[self.thing(self.index)].agent
            before = agent.count("waiting for notifications")
            began = time.monotonic()
            self.testbed.kill(agent.pid)
            wait_for(
                lambda: agent.count("waiting for notifications") > before, "the agent connects", self.connects_within
            )
            self.measurements = {"seconds until the agent connected": round(time.monotonic() - began, 1)}
            yield


class TokenRotated(_One):
    """The tokens of both ends are revoked; the hub reconnects the tunnel at the next request."""

    name = "token-rotated"
    index = 4
    duration = 1.0
    recovers_within = 45.0

    disconnected = _One.affected

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        client = self.testbed.service.boto3_client()
        for tunnel in self.testbed.open_tunnels(self.thing(self.index)):
            answer = client.rotate_tunnel_access_token(tunnelId=tunnel, clientMode="ALL")
            self.testbed.secrets |= {answer["sourceAccessToken"], answer["destinationAccessToken"]}
        yield


class CredentialsRenewed(_OneReopened):
    """The operator gets a new access key, and the old one is revoked."""

    name = "credentials-renewed"
    index = 5
    duration = 5.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        remove_old = self.testbed.renew_credentials()
        yield
        remove_old()


class FirstAddressDead(Fault):
    """The name of a device's SSH server has two addresses, and the first is unreachable."""

    name = "first-address-dead"

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        rule = ["INPUT", "-d", "::1", "-p", "tcp", "-j", "DROP"]
        enter = [*self.testbed.network.enter, "ip6tables"]
        subprocess.run([*enter, "-A", *rule], check=True)
        try:
            began = time.monotonic()
            self.testbed.reach(self.testbed.things[-1])
            self.measurements = {"seconds to connect": round(time.monotonic() - began, 2)}
            if self.measurements["seconds to connect"] > 3:
                self.violation = "the second address was not tried soon enough"
            yield
        finally:
            subprocess.run([*enter, "-D", *rule], check=True)


class HostileClientId(_OneReopened):
    """A device repeatedly logs in at the broker with its own password and another device's client ID."""

    name = "hostile-client-id"
    index = 6
    duration = 1.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        hostile = self.thing(7)
        folder = self.testbed.devices[hostile].agent.folder
        victim = self.testbed.devices[self.thing(self.index)].agent
        host, port = self.testbed.service.mqtt.rsplit(":", 1)
        before = victim.count("waiting for notifications")
        admitted: list[bool] = []
        for _ in range(10):
            client = Client(
                CallbackAPIVersion.VERSION2, client_id=f"{self.thing(self.index)}-tunnels", reconnect_on_failure=False
            )
            client.tls_set_context(ssl.create_default_context(cafile=str(folder / "ca.pem")))
            client.username_pw_set(hostile, (folder / "password").read_text().strip())
            client.on_connect = lambda _client, _data, _flags, reason, _properties: admitted.append(
                not reason.is_failure
            )
            with contextlib.suppress(OSError):
                client.connect(host.rpartition("//")[2], int(port))
                client.loop_start()
                time.sleep(0.5)
                client.loop_stop()
                client.disconnect()
        self.measurements = {
            "answers of the broker": len(admitted),
            "times the victim was disconnected": victim.count("waiting for notifications") - before,
        }
        if not admitted:
            self.violation = "the hostile device did not reach the broker"
        if self.measurements["times the victim was disconnected"]:
            self.violation = "a device disconnected another one by using its client ID"
        yield


def _check_page(testbed: Testbed, thing: str) -> None:
    row = testbed.ensure(thing, "HTTP1")
    content = load_page(thing, row["services"]["HTTP1"]["port"], 5)
    assert content == testbed.devices[thing].page, f"{thing} served another page"


FAULTS: tuple[type[Fault], ...] = (
    HubFolderFull,
    StateFolderFull,
    HubSocketRemoved,
    HubDescriptors,
    ServiceDescriptors,
    BrokerKilled,
    BrokerKilledDiskFull,
    ServiceKilled,
    HubKilled,
    AgentKilled,
    AgentFrozen,
    SshdRestarted,
    PortRefuses,
    NetworkFlaps,
    ServiceFrozen,
    HubFrozen,
    UnsignedFlood,
    PageFlood,
    HalfOpenMqtt,
    TokenRotated,
    CredentialsRenewed,
    FirstAddressDead,
    HostileClientId,
)


class Rotation:
    """The order of the faults: each round has all faults due in it, shuffled. The same seed gives the same order."""

    def __init__(self, faults: tuple[type[Fault], ...], seed: int) -> None:
        self._faults = faults
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[type[Fault]]:
        round_number = 0
        while True:
            due = [fault for fault in self._faults if round_number % fault.every == 0]
            # No chosen fault is due in this round.
            due = due or list(self._faults)
            self._random.shuffle(due)
            yield from due
            round_number += 1
