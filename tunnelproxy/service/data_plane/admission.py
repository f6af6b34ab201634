# SPDX-License-Identifier: Apache-2.0
"""Who may join a tunnel: the rules of access tokens and client tokens.

An access token is valid for one successful handshake, or for any number with the same client token as the first.
Source: "Resolving AWS IoT secure tunneling connectivity issues", AWS IoT Developer Guide.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from ...protocol.session import Mode
from ..model import AccessToken, Tunnel, digest
from ..state.store import Store
from .handshake import Cause, Handshake, HandshakeRejected

__all__ = ["Admission", "Admissions"]


@dataclass(frozen=True)
class Admission:
    """Permission to join a tunnel: redeem it when the handshake succeeds."""

    tunnel: Tunnel
    mode: Mode
    token_digest: bytes = field(repr=False)
    client_token_digest: bytes | None = field(repr=False)
    first: bool = True
    key: str | None = None
    """The name of the access key whose request created the token."""


class Admissions:
    """Checks tokens against the store.

    Args:
        store: the state.
        clock: returns seconds since the epoch.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    def check(self, handshake: Handshake) -> Admission:
        """Decide whether a client may join. Nothing is recorded yet.

        Raises:
            HandshakeRejected: it may not.
        """
        token_digest = digest(handshake.access_token)
        client_digest = None if handshake.client_token is None else digest(handshake.client_token)
        token = self._store.find_token(token_digest)
        tunnel = None if token is None else self._store.find_tunnel(token.tunnel_id)
        if token is None or tunnel is None:
            raise HandshakeRejected(Cause.TOKEN_UNKNOWN, "Invalid access token: this service does not know it.", 403)
        try:
            self._check_token(token, tunnel, handshake.mode, client_digest)
        except HandshakeRejected as rejection:
            rejection.tunnel, rejection.key = tunnel, token.issued_to
            raise
        return Admission(tunnel, token.mode, token_digest, client_digest, not token.used, token.issued_to)

    def redeem(self, admission: Admission) -> None:
        """Record that the handshake has succeeded."""
        if admission.first:
            self._store.mark_token_used(admission.token_digest, admission.client_token_digest)

    def _check_token(self, token: AccessToken, tunnel: Tunnel, mode: Mode, client_digest: bytes | None) -> None:
        if not tunnel.is_open or tunnel.expires_at <= self._clock():
            raise HandshakeRejected(
                Cause.TUNNEL_CLOSED, "Invalid access token: its tunnel is closed or has expired.", 403
            )
        if token.revoked:
            raise HandshakeRejected(Cause.TOKEN_UNKNOWN, "Invalid access token: it was revoked by a rotation.", 403)
        if token.mode is not mode:
            raise HandshakeRejected(
                Cause.WRONG_MODE,
                f"Invalid access token: it is the {token.mode.value}'s, so not for {mode.value} mode.",
            )
        if token.used:
            _check_again(token, client_digest)
        elif client_digest is not None and self._store.client_token_elsewhere(client_digest, tunnel.tunnel_id):
            raise HandshakeRejected(
                Cause.BAD_REQUEST, "Invalid client token: another open tunnel uses it; make one for each tunnel."
            )


def _check_again(token: AccessToken, client_digest: bytes | None) -> None:
    if token.client_token_digest is None or client_digest is None:
        raise HandshakeRejected(
            Cause.TOKEN_USED, "Invalid access token: The access token was previously used and can not be used again."
        )
    if not hmac.compare_digest(token.client_token_digest, client_digest):
        raise HandshakeRejected(
            Cause.TOKEN_USED,
            "Invalid access token: The access token was previously used with another client token.",
        )
