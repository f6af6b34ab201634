# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong in a soak: how, for how long, whom it may trouble, and within which time all must be well again.

A fault that troubles nobody is one that users must not notice.
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

from .environment import Field
from .load import load_page
from .record import Window

__all__ = ["FAULTS", "Fault", "Rotation"]

LONGEST_PROBE = 60.0
"""How long to look on beyond the stated time, so that the report says how long it took."""


class Fault:
    """One kind of fault. Its injection is a context manager that undoes it.

    Attributes:
        name: for ``SOAK_FAULTS``, and the report.
        hold: seconds that it lasts.
        recovers_within: seconds after its end within which all devices must be well.
        every: in each how many rounds of the rotation it is due; processes that are killed in each live too short for
            their growth to be seen.
        apart: whether the next faults do not wait for its end.
    """

    name: ClassVar[str]
    hold: ClassVar[float] = 15.0
    recovers_within: ClassVar[float] = 30.0
    every: ClassVar[int] = 1
    apart: ClassVar[bool] = False

    def __init__(self, field: Field) -> None:
        self.field = field
        self.figures: dict[str, float] = {}
        self.failure = ""

    @property
    def all(self) -> frozenset[str]:
        """Every device."""
        return frozenset(self.field.things)

    def thing(self, index: int) -> str:
        """A device for this fault; the last ones have one fault each."""
        return self.field.things[index % len(self.field.things)]

    def troubled(self) -> frozenset[str]:
        """Devices to which new work may fail."""
        return frozenset()

    def cut(self) -> frozenset[str]:
        """Devices whose connections may end."""
        return frozenset()

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        """Inject it; undo it afterwards."""
        raise NotImplementedError
        yield

    def hold_on(self) -> None:
        """Let it last."""
        time.sleep(self.hold)

    def recovered(self) -> None:
        """Check what else must be well again, once all devices are reached.

        Raises:
            AssertionError: it is not.
        """

    def run(self) -> Window:
        """Inject it, undo it, and see that all is well again within its time."""
        window = self.field.record.open_window(self.name, self.troubled(), self.cut())
        try:
            with self.injected():
                self.hold_on()
        except Exception as error:
            window.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
        window.undone = time.time()
        self._wait_until_well(window)
        window.figures = self.figures
        window.failure = window.failure or self.failure
        return window

    def _wait_until_well(self, window: Window) -> None:
        said = self._probe()
        while said and time.time() - window.undone < self.recovers_within + LONGEST_PROBE:
            time.sleep(0.5)
            said = self._probe()
        window.recovered = time.time()
        took = window.recovered - window.undone
        if said:
            window.failure = f"not well after {took:.0f} s: {said}"
            window.cut = window.troubled = self.all
            self._rescue()
            window.recovered = time.time()
        elif took > self.recovers_within:
            window.failure = f"well after {took:.0f} s only; {self.recovers_within:.0f} are allowed"

    def _probe(self) -> str:
        """What is not well; empty if all is."""
        with ThreadPoolExecutor(5) as pool:
            said = [words for words in pool.map(self._reach, self.field.things) if words]
        if said:
            return "; ".join(said[:3])
        try:
            self.recovered()
        except (AssertionError, OSError, hub.HubError, HTTPException, BotoCoreError, ClientError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _reach(self, thing: str) -> str:
        if any(thing in window.cut | window.troubled for window in self._others()):
            return ""
        try:
            self.field.reach(thing)
        except (hub.HubError, OSError) as error:
            return f"{thing}: {error}"
        return ""

    def _others(self) -> list[Window]:
        """Faults that go on meanwhile."""
        return [each for each in self.field.record.windows if not each.recovered and each.fault != self.name]

    def _rescue(self) -> None:
        """Kill what may be at fault, as an operator would at last, so that the next faults have something to break."""
        for process in self.field.hub_processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self._probe():
            with contextlib.suppress(ProcessLookupError, AssertionError):
                self.field.kill(self.field.service.pid)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: not self._probe(), "all is well with another hub and another service", LONGEST_PROBE)
        for thing in self.field.things:
            if self._reach(thing):
                with contextlib.suppress(hub.HubError, OSError, ClientError, BotoCoreError):
                    self.open_another(thing)

    def open_another(self, thing: str) -> None:
        """Close a device's tunnel and have the hub open the next one, for which all processes must do their part."""
        self.field.close_tunnels(thing)
        self.field.reach(thing)


class _OneReopened(Fault):
    """One whose recovery shows by a tunnel that is opened."""

    index: ClassVar[int]
    _opened = False

    def troubled(self) -> frozenset[str]:
        return frozenset({self.thing(self.index)})

    cut = troubled

    def recovered(self) -> None:
        if not self._opened:
            self.open_another(self.thing(self.index))
            self._opened = True


class HubFolderFull(_OneReopened):
    """Tunnels that are open go on; one that is opened meanwhile is not lost."""

    name = "hub-folder-full"
    index = 1

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.field.hub_disk.fill()
        try:
            with contextlib.suppress(hub.HubError):
                self.open_another(self.thing(self.index))
            yield
        finally:
            self.field.hub_disk.free()


class StateFolderFull(_OneReopened):
    """A tunnel whose time is over while the disk is full is closed afterwards."""

    name = "state-folder-full"
    index = 2
    hold = 20.0
    recovers_within = 60.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        client = self.field.service.boto3_client()
        lives = {"maxLifetimeTimeoutMinutes": 1}
        self._canary = client.open_tunnel(description="expires while the disk is full", timeoutConfig=lives)["tunnelId"]
        time.sleep(50)
        self.field.state_disk.fill()
        try:
            with contextlib.suppress(hub.HubError, ClientError, BotoCoreError):
                self.open_another(self.thing(self.index))
            yield
        finally:
            self.field.state_disk.free()

    def recovered(self) -> None:
        answer = self.field.service.boto3_client().describe_tunnel(tunnelId=self._canary)
        assert answer["tunnel"]["status"] == "CLOSED", "a tunnel has not expired"
        super().recovered()


class _AllTroubled(Fault):
    def troubled(self) -> frozenset[str]:
        return self.all


class _AllCut(_AllTroubled):
    def cut(self) -> frozenset[str]:
        return self.all


class HubSocketRemoved(_AllTroubled):
    """As by a program that cleans up temporary folders."""

    name = "hub-socket-removed"
    hold = 3.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        sockets = list(self.field.hub_disk.path.glob("*.sock"))
        assert sockets, "the hub has no socket"
        for path in sockets:
            path.unlink()
        yield

    def recovered(self) -> None:
        hubs = self.field.hub_processes()
        assert len(hubs) == 1, f"there are {len(hubs)} hubs"


@contextlib.contextmanager
def _no_descriptors(pid: int) -> Iterator[None]:
    """Inside, a process can open nothing more."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


class HubDescriptors(_AllTroubled):
    """Connections that are there go on; new ones press meanwhile."""

    name = "hub-descriptors"
    recovers_within = 40.0
    connections: ClassVar[int] = 40

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        pid = self.field.hub_pid()
        assert pid is not None, "no hub answers"
        with contextlib.ExitStack() as stack, _no_descriptors(pid):
            path = str(self.field.hub_disk.path / hub.SOCKET_NAME)
            for _ in range(self.connections):
                with contextlib.suppress(OSError):
                    each = stack.enter_context(socket.socket(socket.AF_UNIX))
                    each.settimeout(0.2)
                    each.connect(path)
            yield


class ServiceDescriptors(_AllTroubled):
    """Tunnels that are linked go on; new connections from everywhere press meanwhile."""

    name = "service-descriptors"

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        ports = (urlsplit(self.field.service.api).port, int(self.field.service.data.rsplit(":", 1)[1]))
        with contextlib.ExitStack() as stack, _no_descriptors(self.field.service.pid):
            for port in ports * 10:
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection((self.field.place.here, port or 0), timeout=1))
            yield


class BrokerKilled(_OneReopened):
    """The service starts another."""

    name = "broker-killed"
    index = 3
    hold = 1.0
    recovers_within = 40.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.kill_broker()
        yield

    def kill_broker(self) -> None:
        """Kill it."""
        broker = self.field.broker()
        assert broker is not None, "there is no broker"
        broker.kill()


class BrokerKilledDiskFull(BrokerKilled):
    """The service starts another, once it can write again."""

    name = "broker-killed-disk-full"
    hold = 15.0
    recovers_within = 60.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.field.state_disk.fill()
        try:
            self.kill_broker()
            yield
        finally:
            self.field.state_disk.free()


class ServiceKilled(_AllCut):
    name = "service-killed"
    hold = 1.0
    every = 3

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.field.kill(self.field.service.pid)
        yield


class HubKilled(_AllCut):
    name = "hub-killed"
    hold = 1.0
    recovers_within = 20.0
    every = 3

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        pid = self.field.hub_pid()
        assert pid is not None, "no hub answers"
        os.kill(pid, signal.SIGKILL)
        yield


class _One(Fault):
    """One that is a single device's."""

    index: ClassVar[int]

    def troubled(self) -> frozenset[str]:
        return frozenset({self.thing(self.index)})


class AgentKilled(_One):
    name = "agent-killed"
    index = -3
    hold = 1.0

    cut = _One.troubled

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.field.kill(self.field.devices[self.thing(self.index)].agent.pid)
        yield


class AgentFrozen(_One):
    """For longer than any time-out; what it had in hand may end, or go on."""

    name = "agent-frozen"
    index = -2
    hold = 90.0
    recovers_within = 60.0
    apart = True

    cut = _One.troubled

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with _frozen(self.field.devices[self.thing(self.index)].agent.pid):
            yield


class SshdRestarted(_One):
    """Its sessions go on, as OpenSSH's do."""

    name = "sshd-restarted"
    index = 0
    hold = 3.0
    recovers_within = 15.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with self.field.no_sshd(self.thing(self.index)):
            yield


class PortRefuses(_One):
    """The device's HTTP server is away; ssh to it is well."""

    name = "port-refuses"
    index = -5
    hold = 10.0
    recovers_within = 10.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with self.field.no_http(self.thing(self.index)):
            yield

    def recovered(self) -> None:
        _page_is_well(self.field, self.thing(self.index))


class NetworkFlaps(Fault):
    """Between all devices and the service, for so short that nobody may notice more than a delay."""

    name = "network-flaps"
    hold = 5.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        self.field.place.drop_packets()
        try:
            yield
        finally:
            self.field.place.pass_packets()


@contextlib.contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class ServiceFrozen(Fault):
    """For so short that nobody may notice more than a delay."""

    name = "service-frozen"
    hold = 10.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        with _frozen(self.field.service.pid):
            yield


class HubFrozen(_AllTroubled):
    """New work may find it silent; connections go on."""

    name = "hub-frozen"
    hold = 10.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        pid = self.field.hub_pid()
        assert pid is not None, "no hub answers"
        with _frozen(pid):
            yield


class UnsignedFlood(Fault):
    """Requests without a key: nobody else notices, and few of them are written down."""

    name = "unsigned-flood"
    hold = 20.0
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
        self.figures = {"requests": sent, "bytes written": written}
        # The lines that are written for work that is none of the flood's are in there, too.
        if written > self.written_at_most:
            self.failure = (
                f"{sent} unsigned requests caused {written} bytes of logs; {self.written_at_most} are allowed"
            )

    def _written(self) -> int:
        log = self.field.service._log
        return sum(path.stat().st_size for path in (log, *self.field.service.state_dir.glob("audit.log*")))

    def _flood(self, ending: threading.Event) -> int:
        context = ssl.create_default_context(capath=self.field.service.ca)
        address, sent = urlsplit(self.field.service.api).netloc, 0
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
    """As by a broken script of another user of this machine; other devices do not notice."""

    name = "page-flood"
    index = -6
    hold = 20.0
    recovers_within = 15.0
    connections: ClassVar[int] = 200

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        row = self.field.ensure(self.thing(self.index), "HTTP1")
        port = row["services"]["HTTP1"]["port"]
        with contextlib.ExitStack() as stack:
            for _ in range(self.connections):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
            yield

    def recovered(self) -> None:
        _page_is_well(self.field, self.thing(self.index))


class HalfOpenMqtt(_One):
    """Connections that say nothing; an agent that starts meanwhile gets in."""

    name = "half-open-mqtt"
    index = -3
    hold = 5.0
    connections: ClassVar[int] = 300
    gets_in_within: ClassVar[float] = 60.0

    cut = _One.troubled

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        host, port = self.field.service.mqtt.rsplit(":", 1)
        with contextlib.ExitStack() as stack:
            for _ in range(self.connections):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection((host.rpartition("//")[2], int(port)), timeout=2))
            agent = self.field.devices[self.thing(self.index)].agent
            before = agent.count("waiting for notifications")
            began = time.monotonic()
            self.field.kill(agent.pid)
            wait_for(lambda: agent.count("waiting for notifications") > before, "an agent gets in", self.gets_in_within)
            self.figures = {"seconds until an agent got in": round(time.monotonic() - began, 1)}
            yield


class TokenRotated(_One):
    """Both ends' tokens are void; the hub takes the tunnel up again when somebody asks."""

    name = "token-rotated"
    index = 4
    hold = 1.0
    recovers_within = 45.0

    cut = _One.troubled

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        client = self.field.service.boto3_client()
        for tunnel in self.field.open_tunnels(self.thing(self.index)):
            answer = client.rotate_tunnel_access_token(tunnelId=tunnel, clientMode="ALL")
            self.field.secrets |= {answer["sourceAccessToken"], answer["destinationAccessToken"]}
        yield


class CredentialsRenewed(_OneReopened):
    """The operator's access key is another from now on, and that of before is void."""

    name = "credentials-renewed"
    index = 5
    hold = 5.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        remove_old = self.field.renew_credentials()
        yield
        remove_old()


class FirstAddressDead(Fault):
    """A device's SSH server has a name with two addresses, of which the first leads nowhere."""

    name = "first-address-dead"

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        rule = ["INPUT", "-d", "::1", "-p", "tcp", "-j", "DROP"]
        enter = [*self.field.place.enter, "ip6tables"]
        subprocess.run([*enter, "-A", *rule], check=True)
        try:
            began = time.monotonic()
            self.field.reach(self.field.things[-1])
            self.figures = {"seconds to connect": round(time.monotonic() - began, 2)}
            if self.figures["seconds to connect"] > 3:
                self.failure = "the second address was not tried soon"
            yield
        finally:
            subprocess.run([*enter, "-D", *rule], check=True)


class HostileClientId(_OneReopened):
    """A device logs in at the broker with its own password and another device's client ID, again and again."""

    name = "hostile-client-id"
    index = 6
    hold = 1.0

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        hostile = self.thing(7)
        folder = self.field.devices[hostile].agent.folder
        victim = self.field.devices[self.thing(self.index)].agent
        host, port = self.field.service.mqtt.rsplit(":", 1)
        before = victim.count("waiting for notifications")
        let_in: list[bool] = []
        for _ in range(10):
            client = Client(
                CallbackAPIVersion.VERSION2, client_id=f"{self.thing(self.index)}-tunnels", reconnect_on_failure=False
            )
            client.tls_set_context(ssl.create_default_context(cafile=str(folder / "ca.pem")))
            client.username_pw_set(hostile, (folder / "password").read_text().strip())
            client.on_connect = lambda _client, _data, _flags, reason, _properties: let_in.append(not reason.is_failure)
            with contextlib.suppress(OSError):
                client.connect(host.rpartition("//")[2], int(port))
                client.loop_start()
                time.sleep(0.5)
                client.loop_stop()
                client.disconnect()
        self.figures = {
            "answers of the broker": len(let_in),
            "times the other was cut off": victim.count("waiting for notifications") - before,
        }
        if not let_in:
            self.failure = "the hostile device did not reach the broker"
        if self.figures["times the other was cut off"]:
            self.failure = "a device cut off another by its client ID"
        yield


def _page_is_well(field: Field, thing: str) -> None:
    row = field.ensure(thing, "HTTP1")
    content = load_page(thing, row["services"]["HTTP1"]["port"], 5)
    assert content == field.devices[thing].page, f"the page of {thing} is another"


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
    """The order of the faults: each round has all that are due in it, shuffled, and is the same for the same seed."""

    def __init__(self, faults: tuple[type[Fault], ...], seed: int) -> None:
        self._faults = faults
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[type[Fault]]:
        round_number = 0
        while True:
            due = [fault for fault in self._faults if round_number % fault.every == 0]
            # Where only those are chosen that are not due in each round.
            due = due or list(self._faults)
            self._random.shuffle(due)
            yield from due
            round_number += 1
