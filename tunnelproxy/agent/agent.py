# SPDX-License-Identifier: Apache-2.0
"""The agent: an MQTT session, the tunnels that notifications announce, and systemd."""

from __future__ import annotations

import logging

from ..net.background_tasks import supervise
from ..net.mqtt import MqttSession
from .config import AgentConfig
from .notification import notify_topic
from .state_file import SavedTunnels
from .tunnels import Tunnels
from .watchdog import Tell, feed_watchdog

__all__ = ["Agent", "run_agent"]

log = logging.getLogger(__name__)


class Agent:
    """Receives notifications, and serves the tunnels that they announce."""

    def __init__(self, config: AgentConfig, tell: Tell) -> None:
        saved = SavedTunnels(config.state_dir)
        saved.prepare()
        self._tunnels = Tunnels(config, saved)
        self._config = config
        self._tell = tell
        self._session = MqttSession(config.broker, self, notify_topic(config.thing))

    async def run(self) -> None:
        """Serve until cancelled."""
        log.info("starting as the agent of %s", self._config.thing)
        self._tunnels.resume()
        # Supervised: without reports, systemd would restart a working agent.
        watchdog = supervise("feeding the watchdog", lambda: feed_watchdog(self._tell))
        # Do not wait for the broker: a device may start long before its network does.
        self._tell("READY=1", f"STATUS=connecting to the MQTT broker {self._config.broker}")
        try:
            await self._session.run()
        finally:
            watchdog.cancel()
            await self._tunnels.close()

    # Callbacks of the MQTT session.

    def connected(self) -> None:
        log.info("waiting for notifications of %s", self._config.thing)
        self._tell(f"STATUS=waiting for notifications from the MQTT broker {self._config.broker}")

    def disconnected(self) -> None:
        self._tell(f"STATUS=no connection to the MQTT broker {self._config.broker}")

    def received(self, payload: bytes) -> None:
        self._tunnels.notified(payload)

    def published(self, number: int) -> None:
        """The agent publishes nothing."""


async def run_agent(config: AgentConfig, tell: Tell) -> None:
    """Run an agent until cancelled.

    Args:
        tell: sends assignments to the service manager.
    """
    for warning in (*config.warnings, *config.exposed):
        log.warning("%s", warning)
    await Agent(config, tell).run()
