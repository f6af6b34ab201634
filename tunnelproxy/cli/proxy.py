# SPDX-License-Identifier: Apache-2.0
"""``tunnelproxy`` with the command line of AWS's reference ``localproxy``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..addresses import Address, match_services, parse_list, read_directory
from ..destination import DestinationProxy
from ..errors import ConfigurationError, TunnelClosed, TunnelRefused
from ..protocol.session import SUBPROTOCOLS, Mode, Version
from ..proxy import Plan
from ..source import SourceProxy
from ..transport.endpoint import Endpoint, tls_context
from ..transport.link import Access, LinkLost
from . import logs
from .parser import Parser
from .process import TOKEN_VARIABLE, run_until_signal

__all__ = ["Invocation", "read_invocation", "run_proxy"]

log = logging.getLogger(__name__)

ENDPOINT_VARIABLE = "AWSIOT_TUNNEL_ENDPOINT"
REGION_VARIABLE = "AWSIOT_TUNNEL_REGION"
CAPATH_VARIABLE = "AWSIOT_TUNNEL_CAPATH"

DEFAULT_CONFIG_DIR = Path("config")

_MODES = {"src": Mode.SOURCE, "source": Mode.SOURCE, "dst": Mode.DESTINATION, "destination": Mode.DESTINATION}

_EPILOG = f"""\
environment:
  {TOKEN_VARIABLE}  the access token; better than -t, which others can see in a list of processes
  {ENDPOINT_VARIABLE}      like -e; set beside -r, it is where that region's data plane is
  {REGION_VARIABLE}        like -r
  {CAPATH_VARIABLE}        like -c

commands (each has its own --help):
  tunnelproxy service   our own tunneling service
  tunnelproxy hub       the hub that the Ansible connection plugin uses

examples:
  tunnelproxy -r us-east-1 -d HTTP1=80,SSH1=22          on the device
  tunnelproxy -r us-east-1 -s HTTP1=5555,SSH1=3333      on the operator's machine
"""


@dataclass(frozen=True)
class Invocation:
    """What one command line, with its environment, asks for."""

    endpoint: Endpoint
    access: Access
    capath: str | None
    configured: Mapping[str, Address]
    configured_where: str
    bind_address: str | None
    destination_version: Version | None
    verbosity: int

    def plan(self, offered: tuple[str, ...]) -> dict[str, Address | None]:
        """Give each service of the tunnel its address; a :data:`~..proxy.Plan`."""
        return dict(match_services(self.configured, offered, self.access.mode, self.configured_where))


def run_proxy(arguments: Sequence[str]) -> int:
    """Run a source or a destination proxy, and return the exit status."""
    options = _parser().parse_args(arguments)
    logs.configure(options.verbose)
    try:
        invocation = read_invocation(options, os.environ)
        run_until_signal(_serve(invocation))
    except TunnelClosed as closed:
        log.info("the tunnel is closed or has expired: %s", closed)
        return 0
    except (ConfigurationError, TunnelRefused, LinkLost) as error:
        print(f"tunnelproxy: error: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(invocation: Invocation) -> None:
    tls = tls_context(invocation.capath)
    plan: Plan = invocation.plan
    log.info("starting as the %s of the tunnel, at %s", invocation.access.mode.value, invocation.endpoint)
    if invocation.access.mode is Mode.SOURCE:
        await SourceProxy(
            invocation.endpoint,
            invocation.access,
            tls,
            plan,
            bind_address=invocation.bind_address or "localhost",
            destination_version=invocation.destination_version,
        ).run()
    else:
        bind_from = invocation.bind_address
        await DestinationProxy(invocation.endpoint, invocation.access, tls, plan, bind_address=bind_from).run()


def read_invocation(options: argparse.Namespace, environment: Mapping[str, str]) -> Invocation:
    """Join a parsed command line with its environment and its configuration files.

    Raises:
        ConfigurationError: something is missing, malformed, or contradicts something else; it names the option.
    """
    mode = _mode(options)
    configured, where = _addresses(options, mode)
    return Invocation(
        endpoint=_endpoint(options, environment),
        access=Access(mode, _token(options, environment), str(uuid.uuid4()), _versions(options)),
        capath=options.capath or environment.get(CAPATH_VARIABLE) or None,
        configured=configured,
        configured_where=where,
        bind_address=options.local_bind_address,
        destination_version=None
        if options.destination_client_type == "auto"
        else Version[options.destination_client_type],
        verbosity=options.verbose,
    )


def _mode(options: argparse.Namespace) -> Mode:
    listens, connects = options.source_listen_port is not None, options.destination_app is not None
    if listens and connects:
        raise ConfigurationError("-s/--source-listen-port and -d/--destination-app exclude each other")
    if options.mode is None:
        if not listens and not connects:
            raise ConfigurationError("one of -s/--source-listen-port, -d/--destination-app and -m/--mode is required")
        return Mode.SOURCE if listens else Mode.DESTINATION
    mode = _MODES[options.mode]
    if (listens and mode is Mode.DESTINATION) or (connects and mode is Mode.SOURCE):
        other = "-s/--source-listen-port" if listens else "-d/--destination-app"
        raise ConfigurationError(f"-m/--mode {options.mode} contradicts {other}, which is for the other end")
    return mode


def _versions(options: argparse.Namespace) -> tuple[Version, ...]:
    if options.protocol_version is None:
        return tuple(SUBPROTOCOLS)
    return (Version[options.protocol_version],)


def _token(options: argparse.Namespace, environment: Mapping[str, str]) -> str:
    token = (options.access_token or environment.get(TOKEN_VARIABLE) or "").strip()
    if not token:
        raise ConfigurationError(f"no access token: give one in {TOKEN_VARIABLE}, or with -t/--access-token")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError("the access token has characters that no access token has: was it copied whole?")
    return token


def _endpoint(options: argparse.Namespace, environment: Mapping[str, str]) -> Endpoint:
    if options.proxy_endpoint and options.region:
        raise ConfigurationError("-e/--proxy-endpoint and -r/--region exclude each other")
    if options.proxy_endpoint:
        return Endpoint.parse(options.proxy_endpoint)
    region = options.region or environment.get(REGION_VARIABLE)
    of_region = Endpoint.of_region(region) if region else None
    if environment.get(ENDPOINT_VARIABLE):
        return Endpoint.parse(environment[ENDPOINT_VARIABLE])
    if of_region is None:
        raise ConfigurationError(
            f"one of -r/--region and -e/--proxy-endpoint is required (or {REGION_VARIABLE}, {ENDPOINT_VARIABLE})"
        )
    return of_region


def _addresses(options: argparse.Namespace, mode: Mode) -> tuple[Mapping[str, Address], str]:
    if options.source_listen_port is not None:
        return parse_list(options.source_listen_port, "-s/--source-listen-port", mode), "-s/--source-listen-port"
    if options.destination_app is not None:
        return parse_list(options.destination_app, "-d/--destination-app", mode), "-d/--destination-app"
    directory = Path(options.config_dir) if options.config_dir else DEFAULT_CONFIG_DIR
    if options.config_dir and not directory.is_dir():
        raise ConfigurationError(f"--config-dir: there is no directory {directory}")
    configured = read_directory(directory, mode) if directory.is_dir() else {}
    if mode is Mode.DESTINATION and not configured:
        raise ConfigurationError(
            f"a destination needs addresses: give -d/--destination-app, as in -d SSH1=22,HTTP1=80, or *.ini files "
            f"with lines like 'SSH1 = 22' below {directory}/ (--config-dir)"
        )
    return configured, f"{directory}/"


def _parser() -> Parser:
    parser = Parser(
        prog="tunnelproxy",
        description="Source or destination proxy of an AWS IoT secure tunnel.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-V", "--version", action="version", version=f"tunnelproxy {__version__}")
    add(
        "-t",
        "--access-token",
        metavar="TOKEN",
        help=f"the access token of this end; better give it in {TOKEN_VARIABLE}",
    )
    add("-e", "--proxy-endpoint", metavar="HOST[:PORT]", help="the data plane to connect to")
    add("-r", "--region", help="the AWS region where the tunnel was opened, instead of -e")
    add("-m", "--mode", choices=list(_MODES), help="which end this is, where neither -s nor -d says it")
    add(
        "-s",
        "--source-listen-port",
        metavar="[ID=]PORT,…",
        help="be the source: listen on these ports; 0, or no port for a service, picks a free one",
    )
    add(
        "-d",
        "--destination-app",
        metavar="[ID=]ADDRESS,…",
        help="be the destination: connect to these; a port, host:port, or the path of a Unix socket",
    )
    add(
        "-b",
        "--local-bind-address",
        metavar="HOST",
        help="the address to listen on (source, default localhost) or to connect from (destination)",
    )
    add(
        "-c",
        "--capath",
        metavar="DIR",
        help="an OpenSSL hashed directory, or a PEM file, of certificate authorities to trust",
    )
    add(
        "-y",
        "--destination-client-type",
        choices=["auto", *Version.__members__],
        default="auto",
        help="at the source, the version that the device's proxy speaks (default auto: find out)",
    )
    add(
        "--protocol-version",
        choices=list(Version.__members__),
        help="speak this version with the service only (default: the newest that both know)",
    )
    add(
        "--config-dir",
        metavar="DIR",
        help="read *.ini files with lines 'SERVICE = ADDRESS' below this directory (default: ./config if it exists)",
    )
    add(
        "-v",
        "--verbose",
        metavar="0..6",
        type=_verbosity,
        default=logs.DEFAULT_VERBOSITY,
        help="0 off, 1 fatal, 2 error, 3 warning, 4 info, 5 debug, 6 trace (default 4)",
    )
    return parser


def _verbosity(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 6")
    return int(text)
