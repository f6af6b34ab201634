# SPDX-License-Identifier: GPL-3.0-or-later
"""The system calls for bulk data through a tunnel: a guard against performance regressions.

Counted, not timed. When the bounds were set there were, for each message of 63 KiB, 0.8 reads, 1.1 writes and 0.4
wake-ups in a proxy, 0.3, 1.0 and less than 0.1 in the service, and 0.3 page faults at most. Before all reads shared one
buffer, the memory for each of them was allocated from the kernel and freed again.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from peers.exchange import ExchangeServer, exchange
from peers.process import wait_for
from peers.proxies import ProxyPair
from peers.service import TunnelingService
from tunnelproxy.protocol.framing import MAX_PAYLOAD

pytest.importorskip("aiofastnet", reason="what is counted is what the extra 'speed' makes")
if shutil.which("strace") is None:
    pytest.skip("strace counts system calls: apt-get install strace", allow_module_level=True)

READS = ("read", "readv", "recvfrom", "recvmsg")
WRITES = ("write", "writev", "sendto", "sendmsg")
OTHERS = ("epoll_ctl", "getrandom", "brk", "mmap", "munmap", "madvise")
KINDS = {"reads": READS, "writes": WRITES, "others": OTHERS}

SIZE = 30_000_000
WARM_UP = 3_000_000


@dataclass(frozen=True)
class Memory:
    """How often a process has slept, and how many page faults it has had."""

    wake_ups: int
    page_faults: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        status = Path(f"/proc/{pid}/status").read_text()
        switches = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
        assert switches is not None
        faults = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[7]
        return cls(int(switches[1]), int(faults))


@contextmanager
def counted_calls(processes: Mapping[str, int], folder: Path) -> Iterator[dict[str, dict[str, int]]]:
    """The system calls of processes, by name; complete at the end of the block."""
    calls: dict[str, dict[str, int]] = {}
    tracers = []
    for name, pid in processes.items():
        log = folder / f"{name}.strace"
        command = ["strace", "-c", "-f", "-U", "name,calls", "-o", str(log), "-p", str(pid)]
        with (folder / f"{name}.attached").open("w+b") as output:
            tracers.append((name, log, subprocess.Popen(command, stderr=output)))
    try:
        for name, _, _ in tracers:
            wait_for(lambda name=name: "attached" in (folder / f"{name}.attached").read_text(), f"strace on {name}")
        yield calls
    finally:
        for _, _, tracer in tracers:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(10)
    for name, log, _ in tracers:
        calls[name] = {call: int(number) for call, number in re.findall(r"^(\w+)\s+(\d+)$", log.read_text(), re.M)}


def test_bulk_data_needs_few_system_calls(service: TunnelingService, tmp_path: Path) -> None:
    # The same amount flows in each direction.
    messages = 2 * SIZE / MAX_PAYLOAD
    with (
        ExchangeServer(WARM_UP) as first,
        ExchangeServer(SIZE) as second,
        ExchangeServer(SIZE) as third,
        ProxyPair(service, tmp_path, {"SSH1": first.port, "HTTP1": second.port, "HTTP2": third.port}) as pair,
    ):
        processes = {"source": pair.source.pid, "destination": pair.destination.pid, "service": service.pid}
        transfer(pair.ports["SSH1"], WARM_UP)
        before = {name: Memory.of(pid) for name, pid in processes.items()}
        transfer(pair.ports["HTTP1"], SIZE)
        for name, pid in processes.items():
            after = Memory.of(pid)
            wake_ups = (after.wake_ups - before[name].wake_ups) / messages
            page_faults = (after.page_faults - before[name].page_faults) / messages
            print(f"{name}: for each message {wake_ups:.2f} wake-ups, {page_faults:.2f} page faults")
            assert wake_ups <= 1.0, name
            assert page_faults <= 1.0, name
        with counted_calls(processes, tmp_path) as counted:
            transfer(pair.ports["HTTP2"], SIZE)
    for name, calls in counted.items():
        each = {kind: sum(calls.get(call, 0) for call in kinds) / messages for kind, kinds in KINDS.items()}
        print(f"{name}: for each message", ", ".join(f"{value:.2f} {kind}" for kind, value in each.items()))
        assert 0.1 < each["reads"] <= 1.5, (name, calls)
        assert 0.4 < each["writes"] <= 2.0, (name, calls)
        assert each["others"] <= 1.5, (name, calls)


def transfer(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        exchange(sock, size, seed=1)
