# SPDX-License-Identifier: Apache-2.0
"""``tunnelproxy service key``: the access keys of a tunneling service."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..service.model import AccessKey
    from ..service.state.directory import StateDirectory
    from ..service.state.store import Store

__all__ = ["add_parser"]

Command = Callable[[argparse.Namespace], None]


def add_parser(
    commands: argparse._SubParsersAction[Any],
    add_state_dir: Callable[[argparse.ArgumentParser], None],
    reporting: Callable[[Command], Callable[[argparse.Namespace], int]],
    state: Callable[[argparse.Namespace], StateDirectory],
) -> None:
    """Add ``key`` and its commands.

    Args:
        commands: the commands of ``service``.
        add_state_dir: adds the option that they all share.
        reporting: turns a command's errors into an exit status.
        state: finds the state directory from the arguments.
    """
    key = commands.add_parser("key", help="create, list and remove access keys of the service")
    actions = key.add_subparsers(metavar="COMMAND", required=True)

    add = actions.add_parser("add", help="create an access key, and print it once, as a profile for ~/.aws/credentials")
    add.add_argument("name", metavar="NAME", help="the name of the key, which the audit log also contains")
    add.add_argument("--read-only", action="store_true", help="allow only calls that describe and list")
    add.add_argument(
        "--things",
        action="append",
        default=[],
        metavar="PATTERN",
        help="allow only things whose names match, as in 'line-3-*'; can be repeated",
    )
    listing = actions.add_parser("list", help="list the access keys, without their secrets")
    remove = actions.add_parser("remove", help="remove an access key, with immediate effect; its tunnels stay open")
    remove.add_argument("name", metavar="NAME")
    for parser, command in ((add, _add), (listing, _list), (remove, _remove)):
        add_state_dir(parser)
        parser.set_defaults(handler=reporting(_with_state(command, state)))


def _with_state(
    command: Callable[[argparse.Namespace, Store], None], state: Callable[[argparse.Namespace], StateDirectory]
) -> Command:
    def with_state(arguments: argparse.Namespace) -> None:
        with _open(state(arguments)) as store:
            command(arguments, store)

    return with_state


@contextlib.contextmanager
def _open(state: StateDirectory) -> Iterator[Store]:
    """Open the store, and create it if necessary: keys can be created before the first start of the service."""
    from ..service.state.store import Store

    with state.entered():
        state.create()
        store = Store(state.database)
        try:
            yield store
        finally:
            store.close()


def _add(arguments: argparse.Namespace, store: Store) -> None:
    from ..service.model import AccessKey, check_key_name, new_key_pair

    check_key_name(arguments.name)
    key = AccessKey(arguments.name, new_key_pair(), arguments.read_only, tuple(arguments.things))
    store.add_key(key)
    sys.stdout.write(
        f"[{key.name}]\n"
        f"aws_access_key_id = {key.credentials.access_key_id}\n"
        f"aws_secret_access_key = {key.credentials.secret_access_key}\n"
    )


def _list(_arguments: argparse.Namespace, store: Store) -> None:
    rows = [("NAME", "ACCESS KEY ID", "USE", "THINGS"), *map(_row, store.keys())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _row(key: AccessKey) -> tuple[str, str, str, str]:
    use = "read only" if key.read_only else "full"
    return key.name, key.credentials.access_key_id, use, ", ".join(key.things) or "all"


def _remove(arguments: argparse.Namespace, store: Store) -> None:
    store.remove_key(arguments.name)
