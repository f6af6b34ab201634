# SPDX-License-Identifier: Apache-2.0
"""The tunnels that an agent serves: one destination proxy for each.

A notification does not name its tunnel, so the agent cannot distinguish a rotated token from a second tunnel with the
same services. It need not: rotation revokes the old token, and the service then disconnects its proxy and rejects it
from then on. So each token gets its own proxy, and the proxy of a revoked token stops without the agent's help.
Stopping the older proxy here, as agents with one tunnel do, would break a second tunnel of the same device.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from dataclasses import replace

from ..errors import ConfigurationError, TunnelClosed, TunnelRefused
from ..net.background_tasks import spawn
from ..net.backoff import Backoff
from ..net.certificate_dates import date_text
from ..net.endpoint import Endpoint
from ..net.route import Route, find_route
from ..protocol.session import Mode
from ..proxy.addresses import Address, match_services
from ..proxy.destination import DestinationProxy
from ..proxy.link import LinkLost, TunnelCredentials
from .config import AgentConfig
from .notification import Notification, NotificationRefused, read_notification
from .state_file import SavedTunnel, SavedTunnels

__all__ = ["LONGEST_LIFE_SECONDS", "Tunnels"]

log = logging.getLogger(__name__)

LONGEST_LIFE_SECONDS = 12 * 3600.0
"""The maximum lifetime of a tunnel, at AWS and at the tunneling service."""

_MAX_REMEMBERED = 1000
"""How many notifications are remembered, to recognize repeated ones."""

_SAVE_SECONDS = 10.0
"""Seconds after which saving is retried: the disk may have space again, or be writable again."""

_RETRY_SECONDS = (5.0, 300.0)

_ENDS_OF_A_TOKEN = frozenset(("token-unknown", "tunnel-closed", "refused"))
"""Why a service refuses a token that was valid before: it was rotated, or its tunnel was closed. AWS's words are not
documented."""

_FIRST_YEAR_SECONDS = 1_577_836_800.0
"""2020-01-01: this program is newer, so a clock with an earlier time has not been set."""


class Tunnels:
    """Starts a proxy for each notification, and keeps track of the running ones.

    Args:
        saved: the file that saves the tunnels for the next run.
    """

    def __init__(self, config: AgentConfig, saved: SavedTunnels) -> None:
        self._config = config
        self._saved = saved
        self._held: dict[str, SavedTunnel] = {}
        self._joined: set[str] = set()
        """The digests of the tunnels whose access token has been valid."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: dict[str, None] = {}
        self._routes: dict[Endpoint, Route] = {}
        self._saving: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def resume(self) -> None:
        """Reconnect to the tunnels of the last run."""
        now = time.time()
        for saved in self._saved.read():
            tunnel = _dated(saved, now)
            if now - tunnel.since < LONGEST_LIFE_SECONDS and len(self._held) < self._config.max_tunnels:
                log.info("%s: reconnecting after a restart", tunnel.notification)
                self._joined.add(tunnel.notification.digest)
                self._start(tunnel)
        if self._held:
            self._save()

    def notified(self, payload: bytes) -> None:
        """Serve the tunnel of a notification; log a notification that is rejected."""
        try:
            notification = read_notification(payload)
            if notification.digest in self._seen:
                log.info("%s: notified again, nothing to do", notification)
                return
            self._accept(notification)
        except (NotificationRefused, ConfigurationError) as error:
            log.warning("notification refused: %s", error)
            return
        self._start(SavedTunnel(notification, str(uuid.uuid4()), time.time()))
        self._save()

    async def close(self) -> None:
        """Disconnect from all tunnels. The next run reconnects to them."""
        if self._saving is not None:
            self._saving.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, notification: Notification) -> None:
        """Check that the tunnel can be served, before its token is used."""
        unknown = [name for name in notification.services if name not in self._config.services]
        if unknown:
            raise NotificationRefused(
                f"{notification}: no address for {', '.join(unknown)}; the agent's services are "
                f"{', '.join(self._config.services)}"
            )
        if len(self._held) >= self._config.max_tunnels:
            raise NotificationRefused(
                f"{notification}: there are {len(self._held)} tunnels already, which is max_tunnels"
            )
        self._route(notification)

    def _route(self, notification: Notification) -> Route:
        """The route to the tunnel's data plane.

        It is created on first use: the system's CA certificates take a megabyte or two.
        """
        endpoint = self._config.endpoint or Endpoint.of_region(notification.region)
        if endpoint not in self._routes:
            self._routes[endpoint] = find_route(endpoint, os.environ, capath=self._config.capath)
        return self._routes[endpoint]

    def _start(self, tunnel: SavedTunnel) -> None:
        digest = tunnel.notification.digest
        self._seen[digest] = None
        if len(self._seen) > _MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._held[digest] = tunnel
        # A failure affects only this tunnel; _serve() retries what it can.
        task = spawn(f"serving {tunnel.notification}", self._hold(tunnel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hold(self, tunnel: SavedTunnel) -> None:
        """Serve a tunnel until it is closed, then forget it; remember it if this process stops first."""
        name = tunnel.notification
        try:
            await asyncio.wait_for(self._serve(tunnel), LONGEST_LIFE_SECONDS - (time.time() - tunnel.since))
        except TunnelClosed as closed:
            log.info("%s: ended: %s", name, closed)
        except TunnelRefused as refused:
            self._log_refusal(tunnel, refused)
        except ConfigurationError as error:
            log.warning("%s: ended, it cannot be served: %s", name, error)
        except asyncio.TimeoutError:
            log.info("%s: ended, after twelve hours", name)
        except Exception:
            log.exception("%s: failed", name)
        del self._held[name.digest]
        self._joined.discard(name.digest)
        self._save()

    def _log_refusal(self, tunnel: SavedTunnel, refused: TunnelRefused) -> None:
        """Log why a tunnel is no longer served. This is also how the proxy of the old token stops after a rotation."""
        if tunnel.notification.digest in self._joined and refused.cause in _ENDS_OF_A_TOKEN:
            answer = f" (the service says: {refused.answer})" if refused.answer else ""
            log.info(
                "%s: ended: its access token has been replaced, or the tunnel was closed%s", tunnel.notification, answer
            )
        else:
            log.warning("%s: ended: %s", tunnel.notification, refused)

    async def _serve(self, tunnel: SavedTunnel) -> None:
        route = self._route(tunnel.notification)
        credentials = TunnelCredentials(Mode.DESTINATION, tunnel.notification.token, tunnel.client_token)
        log.info("%s: joining it at %s", tunnel.notification, route)
        backoff = Backoff(*_RETRY_SECONDS)

        def plan(offered: tuple[str, ...]) -> dict[str, Address | None]:
            self._joined.add(tunnel.notification.digest)
            return self._plan(offered)

        while True:
            try:
                return await DestinationProxy(route, credentials, plan, permits=self._config.allow.permits_at).run()
            except LinkLost as lost:
                # What a person at a terminal would have to fix may resolve itself here: for example, the clock may
                # not have been set yet when the certificate was verified.
                why: object = lost
            except (TunnelClosed, TunnelRefused, ConfigurationError):
                raise
            except Exception as error:  # a bug here: the token can be used for the next attempt
                log.exception("%s: failed", tunnel.notification)
                why = type(error).__name__
            delay = backoff.next_delay()
            log.warning("%s: %s; trying again in %.0f s", tunnel.notification, why, delay)
            await asyncio.sleep(delay)

    def _plan(self, offered: tuple[str, ...]) -> dict[str, Address | None]:
        services: dict[str, Address | None] = dict(
            match_services(self._config.services, offered, Mode.DESTINATION, "the agent's configuration")
        )
        self._config.allow.check(services, "the agent's configuration")
        return services

    def _save(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        if not self._saved.write(list(self._held.values())):
            self._saving = asyncio.get_running_loop().call_later(_SAVE_SECONDS, self._save)


def _dated(tunnel: SavedTunnel, now: float) -> SavedTunnel:
    """The tunnel, with the current time if its own is impossible: the clock was set in between, or is not set yet.

    The tunnel is kept. If it has expired, the service rejects its token.
    """
    if _FIRST_YEAR_SECONDS <= tunnel.since <= now:
        return tunnel
    log.warning(
        "%s: it was saved at %s, but this device's clock says %s: its age is unknown, and counts from now",
        tunnel.notification,
        date_text(tunnel.since),
        date_text(now),
    )
    return replace(tunnel, since=now)
