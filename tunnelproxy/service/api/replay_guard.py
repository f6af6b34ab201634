# SPDX-License-Identifier: Apache-2.0
"""Rejects replayed requests.

AWS accepts a signed request for five minutes, however often it is sent; an attacker who obtains one, for example from a
debug log, can open tunnels with it during that time. But rejecting every second use would break honest clients: the
signed date has a resolution of one second and botocore signs nothing that distinguishes two calls, so equal calls
within a second have the same signature, and so does a call that botocore retries within that second. Therefore a
signature stays valid for a few seconds after its first use, which is long enough for such calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ..errors import ApiError

__all__ = ["GRACE", "ReplayGuard"]

GRACE = 5.0
"""Seconds within which a signature may be used again."""

_MEMORY = 660.0
"""Seconds for which a signature is remembered: its date is accepted for ten minutes; one more minute to be safe."""


class ReplayGuard:
    """Remembers recently used signatures, in memory only.

    Args:
        clock: returns seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_uses: OrderedDict[bytes, float] = OrderedDict()

    def check(self, signature: bytes) -> None:
        """Record the use of a valid signature.

        Raises:
            ApiError: it was first used too long ago.
        """
        now = self._clock()
        self._forget_before(now - _MEMORY)
        if now - self._first_uses.setdefault(signature, now) > GRACE:
            raise ApiError(
                "InvalidSignatureException",
                f"Signature expired: it was first used more than {GRACE:.0f} seconds ago. Sign the request again.",
                403,
            )

    def _forget_before(self, moment: float) -> None:
        while self._first_uses and next(iter(self._first_uses.values())) < moment:
            self._first_uses.popitem(last=False)
