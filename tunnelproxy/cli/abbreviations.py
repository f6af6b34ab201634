# SPDX-License-Identifier: Apache-2.0
"""Abbreviated long options, which Boost allows in the reference: ``--vers`` for ``--version``.

argparse allows them too, but does not distinguish between the reference's options and ours, so ``--l`` could be
ambiguous here although it is not in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["TOKENS", "expand"]

_DASHES = "--"

TOKENS = {
    **{"access-token"[:size]: "access-token" for size in range(1, len("access-token") + 1)},
    **{"client-token"[:size]: "client-token" for size in range(2, len("client-token") + 1)},
}
"""The options with secrets, by all their abbreviations. No other option begins like these."""


def expand(arguments: Sequence[str], names: Sequence[str], preferred: Sequence[str]) -> tuple[list[str], list[str]]:
    """Expand abbreviated long options. Ambiguous ones are left for the parser to reject.

    Args:
        names: all options, without their dashes.
        preferred: the options that are tried first.

    Returns:
        the arguments, and the abbreviations that were expanded.
    """
    full, abbreviated = [], []
    for argument in arguments:
        given, equals, value = argument.partition("=")
        name = _meant(given[len(_DASHES) :], names, preferred) if given.startswith(_DASHES) else None
        full.append(argument if name is None else f"{_DASHES}{name}{equals}{value}")
        if name is not None:
            abbreviated.append(given)
    return full, abbreviated


def _meant(beginning: str, names: Sequence[str], preferred: Sequence[str]) -> str | None:
    if not beginning or beginning in names:
        return None
    for some in (preferred, names):
        found = [name for name in some if name.startswith(beginning)]
        if found:
            return found[0] if len(found) == 1 else None
    return None
