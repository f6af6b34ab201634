# SPDX-License-Identifier: Apache-2.0
"""The options of a proxy, as the reference ``localproxy`` has them: from the command line, and from ``--config``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigurationError
from ..protocol.session import Mode, Version
from ..proxy.flow_control import STALL_SECONDS
from . import logs
from .abbreviations import expand
from .parser import Parser, seconds

__all__ = [
    "CAPATH_VARIABLE",
    "CLIENT_TOKEN_VARIABLE",
    "CLIENT_TYPES",
    "ENDPOINT_VARIABLE",
    "MODES",
    "REGION_VARIABLE",
    "TOKEN_VARIABLE",
    "Options",
    "read_options",
]

TOKEN_VARIABLE = "AWSIOT_TUNNEL_ACCESS_TOKEN"  # noqa: S105  the name of a variable, not a token
CLIENT_TOKEN_VARIABLE = "AWSIOT_TUNNEL_CLIENT_TOKEN"  # noqa: S105  likewise
ENDPOINT_VARIABLE = "AWSIOT_TUNNEL_ENDPOINT"
REGION_VARIABLE = "AWSIOT_TUNNEL_REGION"
CAPATH_VARIABLE = "AWSIOT_TUNNEL_CAPATH"

CLIENT_TYPES = ("auto", *Version.__members__)
"""Values of ``-y``."""

MODES = {"src": Mode.SOURCE, "source": Mode.SOURCE, "dst": Mode.DESTINATION, "destination": Mode.DESTINATION}

_WORD_TOO_MANY = (
    "there is an extra word that does not belong to any option",
    "it is ignored: is a comma missing before it?",
)
_NOT_IN_A_FILE = ("help", "version", "config", "export-default-settings")
_YES = ("true", "yes", "on", "1", "")
_NO = ("false", "no", "off", "0")

_EPILOG = f"""\
For the same option, the command line overrides --config, which overrides the environment.

environment:
  {TOKEN_VARIABLE}  the access token; safer than -t, which other users can see in the process list
  {CLIENT_TOKEN_VARIABLE}  like -i
  {ENDPOINT_VARIABLE}      like -e; together with -r, the data plane of that region
  {REGION_VARIABLE}        like -r
  {CAPATH_VARIABLE}        like -c
  https_proxy, HTTPS_PROXY    an HTTP proxy to use: http://[USER:PASSWORD@]HOST[:PORT], or https://…
  no_proxy, NO_PROXY          hosts, domains and networks to reach directly; * for all

commands (each has its own --help):
  tunnelproxy service   the self-hosted tunneling service
  tunnelproxy agent     the agent on the device: waits for tunnels, and serves them
  tunnelproxy hub       the hub that the Ansible connection plugin uses

examples:
  tunnelproxy -r us-east-1 -d HTTP1=80,SSH1=22          on the device
  tunnelproxy -r us-east-1 -s HTTP1=5555,SSH1=3333      on the operator's machine

Long options may be abbreviated.
"""


@dataclass(frozen=True)
class Options:
    """The options of the command line and of the file of ``--config``.

    Attributes:
        given: the values, by the names of the long options; options that were not given are absent.
        file: the file of ``--config``.
        from_file: the names of the options that come from it.
        amiss: problems that the reference ignores and ``--strict`` rejects, each with its consequence.
    """

    given: Mapping[str, Any]
    file: Path | None = None
    from_file: frozenset[str] = frozenset()
    amiss: tuple[tuple[str, str], ...] = ()

    @property
    def strict(self) -> bool:
        """Whether problems that the reference ignores are rejected."""
        return bool(self.get("strict"))

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an option."""
        return self.given.get(name, default)

    def label(self, name: str) -> str:
        """The name of an option in messages: as on the command line, or with the file that contains it."""
        return f"{name} in {self.file}" if name in self.from_file else _LABELS[name]


def read_options(arguments: Sequence[str], hidden: Mapping[str, str]) -> Options:
    """Parse a command line, and the file that its ``--config`` names. A bad value ends the process with status 1.

    Args:
        hidden: options that were removed from the command line because they are secret.

    Raises:
        ConfigurationError: the file cannot be read, or contains something other than options.
    """
    full, abbreviated = expand(arguments, list(_LABELS), _REFERENCE)
    parser = Parser(**_PARSER)
    given, amiss = _parse(parser, full)
    given.update(hidden)
    options = Options(given, amiss=amiss)
    if "config" in given:
        file = Path(given["config"])
        words, amiss_there = _read_config(file)
        from_file, _ = _parse(Parser(**_PARSER, place=f"{file}: "), words)
        options = Options({**from_file, **given}, file, frozenset(from_file) - frozenset(given), (*amiss, *amiss_there))
    if options.strict and abbreviated:
        parser.error(f"unrecognized arguments: {' '.join(abbreviated)}")
    if options.strict and options.amiss:
        raise ConfigurationError(options.amiss[0][0])
    return options


def _parse(parser: Parser, arguments: Sequence[str]) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """The given values, by the names of their long options, and the problems."""
    _add_options(parser)
    found, unknown = parser.parse_known_args(arguments)
    # Without values: that of a misspelt --access-token is secret.
    names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if names:
        parser.error(f"unrecognized arguments: {' '.join(names)}")
    values = {name.replace("_", "-"): value for name, value in vars(found).items()}
    return values, (_WORD_TOO_MANY,) if unknown else ()


def _read_config(file: Path) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Read ``name = value`` lines, as the reference does with Boost.

    Returns:
        the options as a command line, and the problems.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"--config: cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--config: {file} is not a text file") from error
    values: dict[str, str] = {}
    amiss = []
    section = ""
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        # Not the line itself: it may contain a token.
        misshapen = f"{file}: line {number} is not like 'name = value', as in 'region = us-east-1'"
        if text.startswith("[") and text.endswith("]"):
            # Boost calls the options below it section.name.
            section = f"{text[1:-1].rstrip('.')}."
            amiss.append((misshapen, "a section without options is ignored"))
        elif text:
            name, equals, value = (part.strip() for part in text.partition("="))
            if not equals:
                raise ConfigurationError(misshapen)
            name = f"{section}{name}"
            _check_name(file, name)
            if name in values:
                raise ConfigurationError(f"{file}: {name} appears twice")
            values[name] = value
    return [word for name, value in values.items() for word in _as_argument(file, name, value)], tuple(amiss)


def _check_name(file: Path, name: str) -> None:
    if name not in _LABELS or name in _NOT_IN_A_FILE:
        raise ConfigurationError(
            f"{file}: '{name}' is not an option that a file may contain: use long names without their dashes, such "
            "as region, and no sections (services' addresses belong in files below config/, see --config-dir)"
        )


def _as_argument(file: Path, name: str, value: str) -> list[str]:
    if name not in _FLAGS:
        return [f"--{name}={value}"]
    if value.lower() not in (*_YES, *_NO):
        raise ConfigurationError(f"{file}: {name} must be true or false, not '{value}'")
    return [f"--{name}"] if value.lower() in _YES else []


def _add_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Describe the options; return them."""
    add = parser.add_argument
    return [
        add("-h", "--help", action="help", help="show this help and exit"),
        add(
            "-V", "--version", action="version", version=f"tunnelproxy {__version__}", help="show the version and exit"
        ),
        add(
            "-t",
            "--access-token",
            metavar="TOKEN",
            help=f"the access token of this end; safer in {TOKEN_VARIABLE}",
        ),
        add(
            "-i",
            "--client-token",
            metavar="TOKEN",
            help="the client token, with which the access token can be reused to reconnect: 32 to 128 letters, digits "
            "and '-' (default: generated)",
        ),
        add("-e", "--proxy-endpoint", metavar="HOST[:PORT]", help="the data plane to connect to"),
        add("-r", "--region", help="the AWS region of the tunnel, instead of -e"),
        add("-m", "--mode", choices=list(MODES), help="which end of the tunnel this is, if neither -s nor -d is given"),
        add(
            "-s",
            "--source-listen-port",
            metavar="[ID=]PORT,…",
            help="run as the source: listen on these ports; 0, or no port, picks a free one",
        ),
        add(
            "-d",
            "--destination-app",
            metavar="[ID=]ADDRESS,…",
            help="run as the destination: connect to a port, host:port, [IPv6]:port, or the path of a Unix socket",
        ),
        add(
            "-b",
            "--local-bind-address",
            metavar="HOST",
            help="the address to listen on (source, default localhost) or to connect from (destination)",
        ),
        add(
            "-c",
            "--capath",
            metavar="DIR",
            help="an OpenSSL hashed directory or a PEM file with the CA certificates to trust",
        ),
        add(
            "-k",
            "--no-ssl-host-verify",
            action="store_true",
            help="do not verify the service's certificate: anyone on the path can read everything",
        ),
        add(
            "-y",
            "--destination-client-type",
            metavar="VERSION",
            help=f"at the source, the protocol version of the device's proxy: {', '.join(CLIENT_TYPES)} (default auto: "
            "detect it); any other value means V3",
        ),
        add(
            "--protocol-version",
            choices=list(Version.__members__),
            help="use only this protocol version with the service (default: the newest that both support)",
        ),
        add(
            "--stall-seconds",
            metavar="SECONDS",
            type=seconds(1, 3600),
            help="reset a connection whose local peer reads nothing for this long while data waits "
            f"(default {STALL_SECONDS:g})",
        ),
        add("--config", metavar="FILE", help="read options from this file: lines like 'region = us-east-1'"),
        add(
            "--config-dir",
            metavar="DIR",
            help="read lines 'SERVICE = ADDRESS' from all files below this directory (default: ./config if it exists)",
        ),
        add("--settings-json", metavar="FILE", help="read fine-grained settings from this file"),
        add("--export-default-settings", metavar="FILE", help="write the default settings to this file and exit"),
        add(
            "-v",
            "--verbose",
            metavar="0..6",
            type=_verbosity,
            help=f"0 off, 1 fatal, 2 error, 3 warning, 4 info, 5 debug, 6 trace (default {logs.DEFAULT_VERBOSITY})",
        ),
        add(
            "--strict",
            action="store_true",
            help="reject what the reference ignores with a warning, such as unknown settings or a port in use",
        ),
        add("--log-format", choices=logs.FORMATS, help=logs.FORMAT_HELP),
    ]


def _verbosity(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 6")
    return int(text)


_PARSER: dict[str, Any] = {
    "prog": "tunnelproxy",
    "description": "Source or destination proxy of an AWS IoT secure tunnel.",
    "epilog": _EPILOG,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
    "argument_default": argparse.SUPPRESS,
    "add_help": False,
}

_OWN = ("protocol-version", "stall-seconds", "strict", "log-format")
"""Options that the reference does not have."""

_OPTIONS = _add_options(Parser(**_PARSER))
_LABELS = {action.option_strings[-1][2:]: "/".join(action.option_strings) for action in _OPTIONS}
_FLAGS = {action.option_strings[-1][2:] for action in _OPTIONS if action.nargs == 0}
_REFERENCE = [name for name in _LABELS if name not in _OWN]
