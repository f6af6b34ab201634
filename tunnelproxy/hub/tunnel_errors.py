# SPDX-License-Identifier: Apache-2.0
"""Why a tunnel or one of its streams does not work: one code and one sentence for each cause.

The causes come from the tunnel's link (:mod:`..errors`) and from the state of its ends in the control API.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import TunnelClosed, TunnelRefused
from .control_answers import EndStates
from .location import HubError
from .tunnel_record import TunnelRecord

__all__ = ["code_of", "no_answer", "not_linked", "not_offered"]

_NO_LONGER_OPEN = ("CLOSED", "GONE")


def code_of(cause: Exception | None) -> str:
    """The code for a link that is not up."""
    if isinstance(cause, TunnelClosed):
        return "tunnel-closed"
    return cause.cause if isinstance(cause, TunnelRefused) else "not-linked"


def not_linked(record: TunnelRecord, cause: Exception | None, states: EndStates, otherwise: str) -> HubError:
    """Why the link of a tunnel is not up.

    Args:
        cause: why the link was lost; None if it was not.
        states: the states of the tunnel's ends according to the control API.
        otherwise: the reason if there is no cause.
    """
    code, words = code_of(cause), f"the tunnel of {record.thing} ({record.name})"
    if code == "tunnel-closed":
        return _no_longer_open(record, cause)
    if not isinstance(cause, TunnelRefused):
        return HubError(f"{words} is not linked: {cause or otherwise}", code=code)
    if states.tunnel in _NO_LONGER_OPEN:
        return _no_longer_open(record, cause)
    if states.owner and states.owner != record.owner:
        return HubError(
            f"{states.owner} took over the tunnel of {record.thing} ({record.name}): agree on who works with the "
            "device; your next task opens a tunnel of your own, unless iotops_tunnel_open is never",
            code="taken-over",
        )
    if states.owner and code == "token-unknown":
        return HubError(
            f"{words} is used from elsewhere: another hub, or job, of {states.owner} reused it, or somebody "
            "rotated its token. Give jobs that run at the same time different owners "
            "(IOTOPS_TUNNEL_OWNER), or one hub (IOTOPS_TUNNEL_DIR); your next task gets a tunnel",
            code="reused-elsewhere",
        )
    return HubError(f"{words} does not work: {cause}; or {_reopen(record)}", code=code)


def no_answer(
    record: TunnelRecord, service_id: str, states: EndStates, *, cause: Exception | None, refused: bool
) -> HubError:
    """Why a stream carried no data although the link is up: from the states of the tunnel's ends.

    Args:
        cause: why the link was lost, if it was.
        refused: whether the stream was closed, rather than left without an answer.
    """
    if states.tunnel in _NO_LONGER_OPEN:
        return _no_longer_open(record, cause)
    thing, tunnel = record.thing, record.name
    if states.destination == "disconnected":
        return HubError(
            f"the device {thing} is not connected to its tunnel ({tunnel}): check that it is online and that its "
            "agent or destination proxy runs with the newest access token",
            code="device-not-connected",
        )
    if refused:
        doubt = "" if states.destination == "connected" else " (or it is not connected: the control API did not answer)"
        return HubError(
            f"the device {thing} refused {service_id}{doubt}: check that the server behind {service_id} runs there, "
            "at the address that its destination proxy has for it",
            code="refused",
        )
    return HubError(
        f"the device {thing} did not answer on {service_id} in time; its end of the tunnel is "
        f"{states.destination}: check that its proxy speaks V3 and that the server behind {service_id} answers there",
        code="no-answer",
    )


def not_offered(record: TunnelRecord, service_id: str, offered: Iterable[str]) -> HubError:
    """The error of a service that the tunnel does not carry."""
    return HubError(
        f"the tunnel of {record.thing} does not offer {service_id}; it carries {', '.join(offered) or 'no services'}",
        code="service-not-offered",
    )


def _no_longer_open(record: TunnelRecord, cause: Exception | None) -> HubError:
    words = str(cause).lower()
    told = isinstance(cause, TunnelClosed) and "closed" not in words and "expired" in words
    end = "has expired" if told or record.expires_within(0) else "was closed"
    return HubError(
        f"the tunnel of {record.thing} ({record.name}) {end}: {_reopen(record)}",
        code="tunnel-closed",
    )


def _reopen(record: TunnelRecord) -> str:
    return f"open another (iotops_tunnel_open=reuse, or the module iotops.tunnel.tunnel with thing_name={record.thing})"
