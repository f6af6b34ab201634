# SPDX-License-Identifier: Apache-2.0
"""The entry point of ``tunnelproxy``: a command, such as ``hub``, or the options of the reference local proxy."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .. import __version__
from .output import printing
from .parser import Parser

__all__ = ["COMMANDS", "main", "run"]

COMMANDS = ("agent", "service", "hub")
"""The first words of command lines that are not for the proxy."""


def run() -> None:
    """Entry point of the console script."""
    from .process import hide_tokens, protect_memory

    protect_memory()
    if not sys.argv[1:2] or sys.argv[1] not in COMMANDS:
        hide_tokens()
    sys.exit(printing(lambda: main(sys.argv[1:])))


def main(arguments: Sequence[str]) -> int:
    """Run one command line, and return its exit status."""
    if list(arguments) in (["--version"], ["-V"]):
        # Without importing libraries, so that it works even if they are too old.
        print(f"tunnelproxy {__version__}")
        return 0
    try:
        return _run(arguments)
    except ImportError as error:
        from . import libraries

        if not libraries.is_of_library(error):
            raise
        print(f"tunnelproxy: error: {libraries.explain(error, 'tunnelproxy')}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] and arguments[0] in COMMANDS:
        return _run_command(arguments)
    if arguments[:1] and not arguments[0].startswith("-"):
        _reject_misspelt_command(arguments[0])
    from .proxy import run_proxy

    return run_proxy(arguments)


def _reject_misspelt_command(word: str) -> None:
    import difflib

    # Words that resemble no command are left to the proxy, which does not print them: one may be a token.
    for command in difflib.get_close_matches(word, COMMANDS, n=1):
        Parser(prog="tunnelproxy").error(f"there is no command {word}; did you mean {command}?")


def _run_command(arguments: Sequence[str]) -> int:
    parser = Parser(prog="tunnelproxy")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    if arguments[0] == "agent":
        from . import agent

        agent.add_parser(subparsers)
    elif arguments[0] == "service":
        from . import service

        service.add_parser(subparsers)
    else:
        from . import hub

        hub.add_parser(subparsers)
    options = parser.parse_args(arguments)
    status: int = options.handler(options)
    return status
