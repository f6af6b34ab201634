# SPDX-License-Identifier: Apache-2.0
"""When calls of the control API may be made, so that AWS does not throttle them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from .account import Account
from .location import HubError

__all__ = ["RATE_VARIABLE", "CallRate", "rate_of"]

RATE_VARIABLE = "IOTOPS_TUNNEL_OPEN_RATE"
"""How many tunnels may be opened a second, where it is not AWS's default; 0 for no limit."""

_NUMBER = re.compile(r"\d+(\.\d+)?\Z", re.ASCII)

_AWS_RATES = {"open": 1.0, "take": 10.0, "end_states": 10.0}
"""AWS's default quotas of OpenTunnel, ListTunnels and DescribeTunnel, in calls a second, account and region."""

_MARGIN = 1.05
"""Two calls arrive less far apart than they were sent, if the first one took longer on its way."""

_THROTTLED_SECONDS = 1.0
"""How long to wait, without a known rate, after a call was throttled."""


def rate_of(op: str, account: Account, environment: Mapping[str, str]) -> float:
    """How often an operation of control processes may be asked for.

    Args:
        op: its name.
        account: the account that it is for. A service with another endpoint than AWS's has no limit.
        environment: the caller's, which may set another rate for opening tunnels.

    Returns:
        calls a second; 0 for no limit.

    Raises:
        HubError: the caller's rate is not a number, or is negative.
    """
    chosen = environment.get(RATE_VARIABLE) if op == "open" else None
    if not chosen:
        return 0.0 if account.endpoint else _AWS_RATES.get(op, 0.0)
    if not _NUMBER.match(chosen):
        raise HubError(
            f"{chosen!r} is not a number of tunnels that may be opened a second: correct or unset {RATE_VARIABLE}",
            code="bad-input",
        )
    return float(chosen)


class CallRate:
    """A token bucket that holds one token. Callers take it in the order in which they came."""

    def __init__(self) -> None:
        self._turns = asyncio.Lock()
        self._next = 0.0

    async def turn(self, rate: float) -> None:
        """Wait for the token.

        Args:
            rate: how many calls a second may be made; 0 for no limit, except after a call that was throttled.
        """
        loop = asyncio.get_running_loop()
        async with self._turns:
            while (wait := self._next - loop.time()) > 0:  # noqa: ASYNC110  throttled() may delay it meanwhile
                await asyncio.sleep(wait)
            self._next = loop.time() + (_MARGIN / rate if rate else 0.0)

    def throttled(self, rate: float) -> None:
        """Delay the next call: others use the same account, and have taken what it may do at the moment."""
        pause = _MARGIN / rate if rate else _THROTTLED_SECONDS
        self._next = max(self._next, asyncio.get_running_loop().time() + pause)
