# SPDX-License-Identifier: Apache-2.0
"""Why a link could not be made or was lost, in sentences for the operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from websockets.exceptions import InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

from ..errors import TunnelClosed, TunnelRefused
from ..net.certificate_dates import NOT_YET_VALID, explain_dates, is_of_dates
from ..net.endpoint import Endpoint
from ..net.http_proxy import HttpProxyError
from ..net.reasons import reason
from ..net.route import CertificateRefused, Route
from ..protocol.session import Mode

__all__ = [
    "LinkLost",
    "LinkTaken",
    "Reconnect",
    "TokenRevoked",
    "connect_errors_explained",
    "explain_close",
    "explain_rejection",
]

_NAME_MISMATCH = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

_CAUSES = (
    # The tunneling service gives the cause in a header; AWS says it in the body.
    ("token-used", "previously used"),
    ("wrong-mode", "mode"),
    ("tunnel-closed", "closed"),
    ("tunnel-closed", "expired"),
    ("token-unknown", "access token"),
)
_REMEDIES = {
    "token-used": "the access token was used before, by another proxy; rotate it and use the new one",
    "token-unknown": "the service does not know the access token: it was rotated, belongs to another region, or is "
    "incomplete; rotate it and use the new one",
    "wrong-mode": "the access token is for the other end of the tunnel; use the {mode} access token here",
    "tunnel-closed": "the tunnel is closed or has expired; open another",
    "bad-request": "the service does not accept the request",
    "refused": "the service refuses the connection: is this the region (or endpoint) where the tunnel was opened?",
}


class LinkLost(Exception):
    """The WebSocket broke, or could not be made; another attempt may succeed.

    Attributes:
        permanent: whether other attempts will fail too until somebody changes something.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class LinkTaken(LinkLost):
    """Another proxy has connected with the same tokens, and has the tunnel now. Reconnecting would take it away."""


class TokenRevoked(LinkLost):
    """The access token was rotated: the service will refuse the next attempt with it."""


class Reconnect(LinkLost):
    """This proxy closed the WebSocket on purpose, to reconnect at once."""


@contextmanager
def connect_errors_explained(route: Route) -> Iterator[None]:
    """Turn the errors of a connection attempt into sentences.

    Raises:
        LinkLost: in place of any OSError.
    """
    try:
        yield
    except HttpProxyError as error:
        raise LinkLost(str(error), permanent=error.permanent) from None
    except CertificateRefused as refused:
        # A device's clock is set soon after it has started.
        permanent = refused.error.verify_code != NOT_YET_VALID
        raise LinkLost(_explain_certificate(refused, route.endpoint), permanent=permanent) from None
    except ConnectionRefusedError as error:
        raise LinkLost(f"cannot reach {route}: {reason(error)}; is the tunneling service running there?") from None
    except OSError as error:
        raise LinkLost(f"cannot reach {route}: {reason(error)}") from None


def explain_close(close: Close, mode: Mode) -> LinkLost | TunnelClosed:
    """Explain a close frame of the service. Clients tell the causes apart by words in the reason, as AWS has no codes.

    Args:
        mode: which end of the tunnel this is.
    """
    words = close.reason.lower()
    if "closed" in words or "expired" in words:
        return TunnelClosed(close.reason)
    if "replaced" in words:
        return LinkTaken(
            f"another proxy has connected as the {mode.value} of this tunnel with the same access token and client "
            "token, and has taken this one's place: stop one of them, or give each its own tunnel"
        )
    kind = TokenRevoked if "revoked" in words else LinkLost
    return kind(f"the service closed the connection ({f'{close.code} {close.reason}'.rstrip()})")


def explain_rejection(error: Exception, response: Response, mode: Mode, channel_id: str) -> LinkLost | TunnelRefused:
    """Explain a handshake that has failed.

    Args:
        error: how websockets judges the response.
        mode: which end of the tunnel this is.
        channel_id: the service's name for this connection; empty if it gave none.
    """
    if not isinstance(error, InvalidStatus):
        # NegotiationError, InvalidUpgrade …: not a tunneling service, or one that is too old or too new.
        return LinkLost("the server there is not a tunneling service: check the endpoint", permanent=True)
    status = response.status_code
    body = (response.body or b"").decode("utf-8", "replace").strip()[:200]
    if status >= 500:
        return LinkLost(f"the service answers {status} {response.reason_phrase}")
    cause = response.headers.get("x-iotops-cause", "")
    if cause not in _REMEDIES:
        cause = next((cause for cause, words in _CAUSES if words in body.lower()), "refused")
    text = f"the service refused with {status}: {_REMEDIES[cause].format(mode=mode.value)}"
    if body:
        text += f" (it says: {body})"
    if channel_id:
        text += f" [channel-id {channel_id}]"
    return TunnelRefused(text, cause=cause, status=status, channel_id=channel_id, answer=body)


def _explain_certificate(refused: CertificateRefused, endpoint: Endpoint) -> str:
    error = refused.error
    if is_of_dates(error):
        return f"the certificate of {endpoint} {explain_dates(error.verify_code, refused.validity)}"
    words = error.verify_message.rstrip(".")
    if error.verify_code in _NAME_MISMATCH:
        words = f"it is not valid for '{endpoint.host}'"
        remedy = "connect by a name that the certificate has (-e/--proxy-endpoint), or find out which server answers"
    else:
        remedy = "pass its CA certificate with -c/--capath or AWSIOT_TUNNEL_CAPATH"
    return f"the certificate of {endpoint} cannot be verified ({words}): {remedy}"
