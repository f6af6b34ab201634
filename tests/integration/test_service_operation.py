# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a service in production: the operator's certificates, names, and a graceful shutdown."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from peers.agent import AgentProcess
from peers.process import REPOSITORY, wait_for
from peers.proxies import open_tunnel
from peers.service import TunnelingService
from peers.signing import now, sign
from tunnelproxy.service.state.certificates import Certificates

BODY = b'{"description": "late"}'


def authority(folder: Path) -> Certificates:
    """A server certificate, as if from the operator's authority."""
    folder.mkdir()
    certificates = Certificates(folder / "keys", folder / "ca")
    certificates.ensure("127.0.0.1")
    return certificates


def served_certificate(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)))).strip()


def first_certificate(chain: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(chain.read_text()).strip()


def own_service(certificates: Certificates, *options: str) -> TunnelingService:
    chain, key = str(certificates.server_chain), str(certificates.server_key)
    return TunnelingService("--certificate", chain, "--key", key, *options)


def addresses(service: TunnelingService) -> list[str]:
    """The certificates of all TLS ports."""
    return [service.api.removeprefix("https://"), service.data, service.mqtt.removeprefix("mqtts://")]


def test_the_operators_certificate_is_served_on_all_ports(tmp_path: Path) -> None:
    own = authority(tmp_path / "own")
    with own_service(own, "--mqtt-port", "0") as service:
        assert service.ca == "system"
        assert "AWS_CA_BUNDLE" not in service.environment
        for address in addresses(service):
            assert served_certificate(address) == first_certificate(own.server_chain)
        environment = {**service.environment, "AWS_CA_BUNDLE": str(own.ca / "ca.pem")}
        service.environment = environment
        assert service.boto3_client().list_tunnels()["tunnelSummaries"] == []


def test_a_device_uses_the_public_name_and_the_operators_authority(tmp_path: Path) -> None:
    own = authority(tmp_path / "own")
    with own_service(own, "--public-name", "localhost", "--mqtt-port", "0") as service:
        service.environment["AWS_CA_BUNDLE"] = str(own.authority)
        assert service.mqtt.startswith("mqtts://localhost:")
        service.add_thing("pump", tmp_path / "pump", "--ca", str(own.authority))
        configuration = (tmp_path / "pump" / "agent.yml").read_text()
        assert 'host: "localhost"' in configuration
        assert 'endpoint: "localhost:' in configuration
        with AgentProcess(tmp_path / "pump"):
            tunnel = open_tunnel(service, ["SSH1"], "pump")
            client = service.boto3_client()

            def connected() -> bool:
                described = client.describe_tunnel(tunnelId=tunnel.tunnel_id)["tunnel"]
                return bool(described["destinationConnectionState"]["status"] == "CONNECTED")

            wait_for(connected, "the agent is in the tunnel")


def test_after_sighup_a_renewed_certificate_is_served_but_not_a_damaged_one(tmp_path: Path) -> None:
    own, renewed = authority(tmp_path / "own"), authority(tmp_path / "renewed")
    with own_service(own, "--mqtt-port", "0") as service:
        whole = own.server_chain.read_bytes()
        own.server_chain.write_bytes(whole[:200])
        os.kill(service.pid, signal.SIGHUP)
        wait_for(lambda: "still using the previous certificate" in service.log_text(), "a complaint")
        own.server_chain.write_bytes(whole)
        for address in addresses(service):
            assert served_certificate(address) == first_certificate(own.server_chain)

        own.server_chain.write_bytes(renewed.server_chain.read_bytes())
        own.server_key.write_bytes(renewed.server_key.read_bytes())
        os.kill(service.pid, signal.SIGHUP)
        expected = first_certificate(renewed.server_chain)
        for address in addresses(service):
            wait_for(partial(_serves, address, expected), f"the renewed certificate at {address}")


def _serves(address: str, certificate: bytes) -> bool:
    return served_certificate(address) == certificate


@pytest.mark.parametrize("missing", ["--certificate", "--key"])
def test_certificate_and_key_belong_together(tmp_path: Path, missing: str) -> None:
    given = "--key" if missing == "--certificate" else "--certificate"
    done = refused_run(tmp_path, given, str(tmp_path / "file.pem"))
    assert "--certificate and --key belong together" in done


def test_the_error_for_a_key_of_another_certificate_names_both_files(tmp_path: Path) -> None:
    own, other = authority(tmp_path / "own"), authority(tmp_path / "other")
    done = refused_run(tmp_path, "--certificate", str(own.server_chain), "--key", str(other.server_key))
    assert str(own.server_chain) in done
    assert str(other.server_key) in done


def refused_run(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "tunnelproxy", "service", "run", "--state-dir", str(folder / "state"), *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tunnelproxy: error: ")
    return done.stderr


def test_the_environment_and_the_certificate_contain_the_public_name() -> None:
    with TunnelingService("--host", "127.0.0.2", "--public-name", "localhost", "--mqtt-port", "0") as service:
        assert service.api.startswith("https://localhost:")
        assert service.environment["AWSIOT_TUNNEL_ENDPOINT"] == service.data
        context = ssl.create_default_context(capath=service.ca)
        for address in addresses(service):
            host, _, port = address.rpartition(":")
            assert host == "localhost"
            connection = socket.create_connection(("127.0.0.2", int(port)), timeout=10)
            with context.wrap_socket(connection, server_hostname=host) as tls:
                assert ("DNS", "localhost") in tls.getpeercert()["subjectAltName"]


def test_a_control_call_in_progress_is_answered_while_the_service_stops() -> None:
    with TunnelingService() as service:
        connection, sock = begun_call(service)
        os.kill(service.pid, signal.SIGTERM)
        wait_for(lambda: "stopping" in service.log_text(), "the service to stop")
        sock.sendall(BODY[5:])
        response = connection.getresponse()
        assert response.status == 200
        assert b"tunnelId" in response.read()
        connection.close()
        assert service.wait() == 0
        service.start()
        (tunnel,) = service.boto3_client().list_tunnels()["tunnelSummaries"]
        assert tunnel["description"] == "late"


def begun_call(service: TunnelingService) -> tuple[http.client.HTTPConnection, Any]:
    """A call whose body has been sent only partially."""
    environment = service.environment
    headers = sign(
        service.api,
        "OpenTunnel",
        key_id=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        signed_at=now(),
        body=BODY,
    )
    context = ssl.create_default_context(capath=service.ca)
    connection = http.client.HTTPSConnection(service.api.removeprefix("https://"), timeout=10, context=context)
    connection.putrequest("POST", "/")
    for name, value in {**headers, "Content-Length": str(len(BODY))}.items():
        connection.putheader(name, value)
    connection.endheaders(BODY[:5])
    assert connection.sock is not None
    # So that the service has the first part when it is stopped.
    wait_for(lambda: not unsent(connection.sock), "the first part to arrive")
    return connection, connection.sock


def unsent(sock: socket.socket) -> int:
    import array  # noqa: PLC0415 - only here
    import fcntl  # noqa: PLC0415
    import termios  # noqa: PLC0415

    queued = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
    return queued[0]
