# SPDX-License-Identifier: Apache-2.0
"""Refuses signed requests that come again.

AWS accepts a signed request for five minutes, however often it comes; who gets hold of one, say from a debug log, can
open tunnels with it meanwhile. Refusing every second use would break honest clients, though: the date that is signed
has whole seconds, and botocore signs nothing that tells two calls apart, so that two equal calls within one second bear
the same signature, and so does a call that botocore sends again within that second. A signature is therefore good for
a few seconds from its first use: long enough for those to arrive, and no longer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ..errors import ApiError

__all__ = ["GRACE", "ReplayGuard"]

GRACE = 5.0
"""Seconds for which a signature may be used again."""

_MEMORY = 660.0
"""Seconds for which a signature is remembered: the ten minutes that its date may be accepted, and one to spare."""


class ReplayGuard:
    """The signatures used lately. It forgets them when the service ends.

    Args:
        clock: gives seconds, and never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_uses: OrderedDict[bytes, float] = OrderedDict()

    def check(self, signature: bytes) -> None:
        """Note the use of a signature that has been found genuine.

        Raises:
            ApiError: its time is over.
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
