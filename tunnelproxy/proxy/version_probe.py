# SPDX-License-Identifier: Apache-2.0
"""Finding out which version of the protocol a tunnel's destination speaks.

A source that was not told speaks V3, and sends only messages that older destinations understand as well until the
destination has shown its version (see :mod:`~..protocol.session`). Where no answer comes:

1. After :data:`ASK_SECONDS` the destination is asked whether it speaks V3. Older ones ignore the question.
2. After :data:`SILENCE_SECONDS` it may be one of the few that answer V1 only, and ignore everything newer. They serve
   SSH and VNC, where the server speaks first, so what the local client has sent meanwhile was held back here. The
   source connects again, speaks V1, and the client's bytes are sent once. For other services the bytes are gone: the
   operator is told about the option.
3. If V1 gets no answer either, the source returns to V3: the next device in this place may be one that exits when it
   receives V1.

A destination that answered V1 only may be replaced by a newer one at any time. V1 does not tell: it has one message for
the end of a connection and for a destination that has gone. So the source returns to V3, and starts over with shorter
waits, on each new link, and when the link is idle after the far end has ended a connection, or for
:data:`RECHECK_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Callable

from ..protocol.session import Connection, Version
from .local_socket import LocalSocket
from .multiplexer import Multiplexer

__all__ = ["VersionProbe"]

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0
"""How long a destination of unknown version may send nothing before it is asked whether it speaks V3."""

SILENCE_SECONDS = 15.0
"""How long it may send nothing, not even an answer to that, before it counts as silent. The reference answers nothing
while it tries to connect to its server, up to five times and 2.5 s apart."""

EXPECTED_V1 = 0.2
"""The fraction of these times to wait where the thing's previous destination spoke V1 only. A newer one answers the
question at once."""

RECHECK_SECONDS = 600.0
"""How long a link that speaks V1 may carry no connection. The client after that waits :data:`EXPECTED_V1` times
:data:`SILENCE_SECONDS` if the destination still answers V1 only."""

V1_ONLY_SERVICES = frozenset(("SSH", "VNC"))
"""The services of AWS IoT Device Client and Greengrass, the only destinations in the field that ignore messages newer
than V1. In both protocols the server speaks first."""


class VersionProbe:
    """Finds out what the destination of one tunnel speaks. It lasts as long as the tunnel, over all of its links.

    Args:
        services: the IDs of the tunnel's services; they may become known later.
        reconnect: replaces the link, for the reason given; connections that have carried nothing wait for the next one.
        retry_waiting: opens the connections that wait, as far as that is possible now.
        told: the version that the operator says the destination speaks; None to find out.
        answers_v1_only: whether the destination was found, earlier in this tunnel, to answer nothing but V1. The first
            link tries that at once.
        expects_v1: whether an earlier tunnel found that of the thing. It may be another device by now, or a newer one.
        speaks_newer: whether it was found to speak V2 or V3. V1 is never tried then, however long it is silent.
    """

    def __init__(
        self,
        services: Collection[str],
        reconnect: Callable[[str], None],
        retry_waiting: Callable[[], None],
        *,
        told: Version | None = None,
        answers_v1_only: bool = False,
        expects_v1: bool = False,
        speaks_newer: bool = False,
    ) -> None:
        self.answers_v1_only = False
        """Whether the destination was found to ignore everything but V1."""
        self.speaks_newer = speaks_newer
        """Whether it was found to speak V2 or V3."""
        self.refusal: str | None = None
        """Why this source cannot talk to the destination, if their versions do not fit."""
        self._services = services
        self._reconnect = reconnect
        self._retry_waiting = retry_waiting
        self._told = told
        self._found: Version | None = None
        self._trying_v1 = False
        """Whether this link speaks V1 to see whether the destination answers that."""
        self._try_v1_next = answers_v1_only
        self._expects_v1 = expects_v1
        self._timers: dict[Connection, asyncio.TimerHandle] = {}
        """For the connections whose stream has had no answer yet."""
        self._may_be_another = False
        """Whether this link's destination may have been replaced since it answered V1."""
        self._recheck: asyncio.TimerHandle | None = None
        self._held: set[LocalSocket] = set()
        """Open connections that send nothing yet, because they may have to move to a link that speaks V1."""
        self._multiplexer: Multiplexer | None = None

    @property
    def spoken(self) -> Version:
        """The version that the destination speaks, as far as it is known."""
        return self._found or self._told or Version.V3

    def next_link(self) -> tuple[Version, bool]:
        """Choose for the next link: the version to speak, and whether the destination may speak an older one."""
        self._trying_v1, self._try_v1_next = self._try_v1_next, False
        if self._told is not None:
            return self._told, False
        return (Version.V1, False) if self._trying_v1 else (Version.V3, True)

    def use(self, multiplexer: Multiplexer) -> None:
        """Probe the destination over the link of this multiplexer. The link before it has gone."""
        self._multiplexer = multiplexer
        self._may_be_another = False
        self._stop_recheck()

    def open(self, service_id: str, local: LocalSocket) -> Connection:
        """Open a connection, and wait for the first answer in its stream.

        While the destination may be one that answers V1 only, a client whose server speaks first sends nothing.
        """
        multiplexer = self._current
        self._stop_recheck()
        if local.awaits_answer and self._may_answer_v1_only(service_id):
            self._hold(local)
        else:
            self._let_go(local)
        connection = multiplexer.open(service_id, local)
        if multiplexer.is_undecided(service_id):
            self._start_timer(connection, ASK_SECONDS, self._ask)
        elif not self._trying_v1:
            self._release()
        return connection

    def is_undecided(self, service_id: str) -> bool:
        """Whether the destination, which has one connection of a service, may turn out to accept more."""
        return self._current.is_undecided(service_id) or self._trying_v1

    # What the multiplexer reports.

    def version_found(self, version: Version) -> None:
        """The destination has shown which version it speaks."""
        if version is not self._found:
            log.info("the destination speaks %s", version)
        self._found = version
        if self._trying_v1:
            self._trying_v1, self.answers_v1_only, self._expects_v1 = False, True, True
        # The reference of 2.x answers V1 too, where the tunnel has one service, and shows that it is newer.
        self.speaks_newer = version is not Version.V1
        if self.speaks_newer:
            self.answers_v1_only = self._expects_v1 = False
        self.refusal = self._explain_refusal(version)
        if self.refusal is not None:
            log.error("%s", self.refusal)
            for connection in list(self._current.connections):
                self._current.reset(connection)
        else:
            asyncio.get_running_loop().call_soon(self._retry_waiting)
        self._release()

    def connection_ended(self, connection: Connection, local: LocalSocket) -> None:
        """A connection has ended, whichever end closed it."""
        self._held.discard(local)
        self._stop_timer(connection)
        loop = asyncio.get_running_loop()
        if self._trying_v1 and not local.bytes_out:
            loop.call_soon(self._stop_trying_v1)
        else:
            self._may_be_another = self._may_be_another or not local.ended
            if self._speaks_too_old():
                loop.call_soon(self._speak_newer)
            elif self._speaks_v1_when_idle():
                self._recheck = loop.call_later(RECHECK_SECONDS, self._has_been_idle)

    # What the sockets of held connections report.

    def local_ready(self, local: LocalSocket) -> None:
        """Keep the bytes of a held connection. When its peer has gone, nobody awaits the answer: they are dropped."""
        if local.ended:
            local.pending = b""
            if local in self._held:
                self._held.remove(local)
                self._let_go(local)
                local.report_ready()

    def local_full(self, local: LocalSocket) -> None:
        """Never called: nothing has come for a held connection."""

    def local_drained(self, local: LocalSocket) -> None:
        """Nothing to do: nothing has come for a held connection."""

    # Waiting for an answer.

    def _start_timer(self, connection: Connection, seconds: float, action: Callable[[Connection], None]) -> None:
        """Wait for the first answer in a stream of a destination of unknown version."""
        seconds *= EXPECTED_V1 if self._expects_v1 else 1.0
        self._timers[connection] = asyncio.get_running_loop().call_later(seconds, self._timed_out, connection, action)

    def _timed_out(self, connection: Connection, action: Callable[[Connection], None]) -> None:
        del self._timers[connection]
        if self._current.is_undecided(connection.service_id):
            action(connection)

    def _stop_timer(self, connection: Connection) -> None:
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _ask(self, connection: Connection) -> None:
        self._current.ask_version(connection.service_id)
        self._start_timer(connection, SILENCE_SECONDS - ASK_SECONDS, self._destination_silent)

    def _destination_silent(self, connection: Connection) -> None:
        if len(self._services) > 1:
            return
        if self._held:
            log.info("no answer from the destination: trying V1, the only version that some answer (-y V3 prevents it)")
            self._try_v1_next = True
            self._start_over("trying V1")
        elif any(local.bytes_in or local.awaits_answer for local in self._current.connections.values()):
            log.warning(
                "%s: no answer from the destination for %.0f s: its server is slow, or it speaks V1 only; in that case "
                "pass -y V1",
                connection.service_id,
                SILENCE_SECONDS,
                extra={"service": connection.service_id},
            )

    # Holding connections, and moving them to another link.

    def _may_answer_v1_only(self, service_id: str) -> bool:
        if self._told is not None or self.speaks_newer:
            return False
        return service_id in V1_ONLY_SERVICES and len(self._services) == 1

    def _hold(self, local: LocalSocket) -> None:
        local.owner, local.reads_ahead = self, True
        self._held.add(local)

    def _let_go(self, local: LocalSocket) -> None:
        local.owner, local.reads_ahead = self._current, False

    def _release(self) -> None:
        """Let the held connections send."""
        held, self._held = self._held, set()
        for local in held:
            self._let_go(local)
            if local.pending or local.ended:
                local.report_ready()

    def _start_over(self, why: str) -> None:
        """Replace the link, because one link may not mix the versions."""
        for connection in list(self._timers):
            self._stop_timer(connection)
        # The sockets still report here: one that ends while it waits for the next link is dropped with its bytes.
        self._held.clear()
        self._reconnect(why)

    def _stop_trying_v1(self) -> None:
        if self._trying_v1:
            self._start_over("no answer to V1 either")

    def _speaks_v1_when_idle(self) -> bool:
        """Whether the link carries nothing, and speaks V1 without having been told to."""
        link = self._current
        return self._told is None and link.version is Version.V1 and link.linked and not link.connections

    def _speaks_too_old(self) -> bool:
        """Whether an idle link speaks V1 to a destination that is newer, or may have been replaced by a newer one."""
        return self._speaks_v1_when_idle() and (self.speaks_newer or self._may_be_another)

    def _speak_newer(self) -> None:
        if self._speaks_too_old():
            known = "the destination speaks a newer version"
            self._start_over(known if self.speaks_newer else "another destination may have taken its place")

    def _has_been_idle(self) -> None:
        self._may_be_another = True
        self._speak_newer()

    def _stop_recheck(self) -> None:
        if self._recheck is not None:
            self._recheck.cancel()
            self._recheck = None

    @property
    def _current(self) -> Multiplexer:
        if self._multiplexer is None:
            raise RuntimeError("there has been no link yet")
        return self._multiplexer

    def _explain_refusal(self, version: Version) -> str | None:
        if version is not Version.V1:
            return None
        if len(self._services) > 1:
            return (
                f"the destination speaks {version}, which carries one service, but this tunnel has "
                f"{', '.join(self._services)}: open a tunnel with one service for this device, or give the device a "
                "proxy that speaks V3"
            )
        if self._told not in (None, version):
            return (
                f"the destination speaks {version}, but this source was told that it speaks {self._told}: "
                f"pass -y {version}, or omit -y"
            )
        return None
