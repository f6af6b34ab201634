# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel is asked for while bulk data goes through a tunnel: a guard against getting slower.

Counted, not timed. When the bounds were set there were, for each message of 63 KiB, 0.7 reads and 1.4 writes in a
proxy, 0.3 and 1.0 in the service, 0.2 wake-ups, and 0.4 page faults. Before one buffer served all reads, the memory for
each of them was taken from the kernel and given back.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from peers.exchange import ExchangeServer, exchange
from peers.proxies import ProxyPair
from peers.service import TunnelingService
from tunnelproxy.protocol.framing import MAX_PAYLOAD

pytest.importorskip("uvloop", reason="asyncio's own event loop reads with recv(), which the kernel does not count")

SIZE = 30_000_000
WARM_UP = 3_000_000


@dataclass(frozen=True)
class Work:
    """What a process has had from the kernel."""

    reads: int
    writes: int
    wake_ups: int
    page_faults: int

    @classmethod
    def of(cls, pid: int) -> Work:
        io = dict(re.findall(r"(\w+): (\d+)", Path(f"/proc/{pid}/io").read_text()))
        status = Path(f"/proc/{pid}/status").read_text()
        switches = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
        assert switches is not None
        faults = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[7]
        return cls(int(io["syscr"]), int(io["syscw"]), int(switches[1]), int(faults))

    def each(self, before: Work, messages: float) -> dict[str, float]:
        return {name: (value - getattr(before, name)) / messages for name, value in vars(self).items()}


def test_bulk_data_asks_little_of_the_kernel(service: TunnelingService, tmp_path: Path) -> None:
    with (
        ExchangeServer(WARM_UP) as first,
        ExchangeServer(SIZE) as second,
        ProxyPair(service, tmp_path, {"SSH1": first.port, "HTTP1": second.port}) as pair,
    ):
        processes = {"source": pair.source.pid, "destination": pair.destination.pid, "service": service.pid}
        transfer(pair.ports["SSH1"], WARM_UP)
        before = {name: Work.of(pid) for name, pid in processes.items()}
        transfer(pair.ports["HTTP1"], SIZE)
        # As much goes one way as the other.
        messages = 2 * SIZE / MAX_PAYLOAD
        each = {name: Work.of(pid).each(before[name], messages) for name, pid in processes.items()}
    print(each)
    for name, work in each.items():
        assert work["reads"] <= 1.5, (name, work)
        assert work["writes"] <= 2.8, (name, work)
        assert work["wake_ups"] <= 1.0, (name, work)
        assert work["page_faults"] <= 2.0, (name, work)


def transfer(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        exchange(sock, size, seed=1)
