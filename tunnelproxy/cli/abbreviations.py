# SPDX-License-Identifier: Apache-2.0
"""Long options by their beginnings, as Boost lets the reference's users write them: ``--vers`` for ``--version``.

argparse has this too, but would take the options that are ours alone for as likely as the reference's, so that
``--l`` could mean two things here and one there.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["TOKENS", "expand"]

_DASHES = "--"

TOKENS = {
    **{"access-token"[:size]: "access-token" for size in range(1, len("access-token") + 1)},
    **{"client-token"[:size]: "client-token" for size in range(2, len("client-token") + 1)},
}
"""What the options with secrets may be called: no other option begins like them."""


def expand(arguments: Sequence[str], names: Sequence[str], preferred: Sequence[str]) -> tuple[list[str], list[str]]:
    """Write long options out. What stands for several is left for the parser to refuse.

    Args:
        names: the options that there are, without their dashes.
        preferred: those of them that come first.

    Returns:
        the arguments, and the abbreviations that were among them.
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
