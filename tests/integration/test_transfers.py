# SPDX-License-Identifier: GPL-3.0-or-later
"""Data through a real tunnel, with service, source and destination as separate processes."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from peers.exchange import ExchangeServer, Outcome, exchange
from peers.process import wait_for
from peers.proxies import ProxyPair, peak_memory
from peers.service import TunnelingService

MEGABYTE = 1000 * 1000
MEMORY_LIMIT = 80 * 1024 * 1024


def test_ten_connections_over_two_services_carry_20_mb_each_way(service: TunnelingService, tmp_path: Path) -> None:
    size = 20 * MEGABYTE
    with ExitStack() as stack:
        ssh, http = (stack.enter_context(ExchangeServer(size)) for _ in range(2))
        with ProxyPair(service, tmp_path, {"SSH1": ssh.port, "HTTP1": http.port}) as pair:

            def transfer(seed: int) -> Outcome:
                name = ("SSH1", "HTTP1")[seed % 2]
                with socket.create_connection(("127.0.0.1", pair.ports[name])) as sock:
                    return exchange(sock, size, seed)

            with ThreadPoolExecutor(10) as pool:
                outcomes = list(pool.map(transfer, range(10)))
            servers = wait_for(
                lambda: len(found := {**ssh.outcomes, **http.outcomes}) == 10 and found, "both servers have noted all"
            )
            assert len({outcome.sent for outcome in outcomes}) == 10
            assert {outcome.received for outcome in outcomes} == {servers[outcome.sent].sent for outcome in outcomes}
            peaks = {
                name: peak_memory(pid)
                for name, pid in {
                    "source": pair.source.pid,
                    "destination": pair.destination.pid,
                    "service": service.pid,
                }.items()
            }
            print({name: f"{peak / 1024 / 1024:.0f} MB" for name, peak in peaks.items()})
            assert max(peaks.values()) < MEMORY_LIMIT, peaks


def test_everything_arrives_without_the_extra_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    missing.mkdir()
    for name in ("aiofastnet", "uvloop"):
        (missing / f"{name}.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(missing))
    with (
        ExchangeServer(5 * MEGABYTE) as server,
        TunnelingService() as service,
        ProxyPair(service, tmp_path, {"SSH1": server.port}) as pair,
        ThreadPoolExecutor(3) as pool,
    ):

        def transfer(seed: int) -> Outcome:
            with socket.create_connection(("127.0.0.1", pair.ports["SSH1"])) as sock:
                return exchange(sock, 5 * MEGABYTE, seed)

        outcomes = list(pool.map(transfer, range(3)))
        wait_for(lambda: len(server.outcomes) == 3, "the server has noted all")
        assert all(outcome.received == server.outcomes[outcome.sent].sent for outcome in outcomes)
        for pid in (service.pid, pair.source.pid, pair.destination.pid):
            assert "uvloop" not in Path(f"/proc/{pid}/maps").read_text()


def test_data_sent_before_the_close_arrives_completely(service: TunnelingService, tmp_path: Path) -> None:
    """A server sends 5 MB and closes immediately: the client receives all of it, then the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    data = bytes(range(256)) * (5 * MEGABYTE // 256)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(data)

    port = listener.getsockname()[1]
    with listener, ThreadPoolExecutor(1) as pool, ProxyPair(service, tmp_path, {"HTTP1": port}) as pair:
        serving = pool.submit(serve)
        with socket.create_connection(("127.0.0.1", pair.ports["HTTP1"])) as sock, sock.makefile("rb") as stream:
            assert stream.read() == data
        serving.result()


def test_a_closed_port_at_the_destination_closes_the_local_connection(
    service: TunnelingService, tmp_path: Path
) -> None:
    with ProxyPair(service, tmp_path, {"HTTP1": 1}) as pair:
        with socket.create_connection(("127.0.0.1", pair.ports["HTTP1"])) as sock:
            sock.settimeout(20)
            assert sock.recv(1) == b""
        pair.destination.wait_for_output(r"cannot connect to localhost:1 \(attempt 5 of 5\)")


def test_both_proxies_exit_cleanly_when_the_tunnel_is_closed(service: TunnelingService, tmp_path: Path) -> None:
    with ProxyPair(service, tmp_path, {"HTTP1": 1}) as pair:
        service.boto3_client().close_tunnel(tunnelId=pair.tunnel.tunnel_id)
        assert (pair.source.wait(), pair.destination.wait()) == (0, 0)
        for proxy in (pair.source, pair.destination):
            assert "closed or has expired" in proxy.output()


def test_both_proxies_reconnect_when_the_service_is_back(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(ExchangeServer(MEGABYTE))
        service = stack.enter_context(TunnelingService())
        with ProxyPair(service, tmp_path, {"HTTP1": server.port}) as pair:
            service.kill()
            pair.source.wait_for_output("trying again")
            service.start()
            for proxy in (pair.source, pair.destination):
                wait_for(lambda proxy=proxy: proxy.output().count("connected to") == 2, "both are connected again", 30)
            with socket.create_connection(("127.0.0.1", pair.ports["HTTP1"])) as sock:
                assert exchange(sock, MEGABYTE, 1).sent in wait_for(lambda: server.outcomes, "the server is done")
