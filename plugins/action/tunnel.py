# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin of iotops.tunnel.tunnel: runs the module on the controller and hands the source token to the hub."""

from __future__ import annotations

import os
from datetime import datetime

from ansible.errors import AnsibleActionFail
from ansible_collections.iotops.tunnel.plugins.module_utils.ports import parse_ports
from ansible_collections.iotops.tunnel.plugins.module_utils.tunnel_options import REQUIRED_TOGETHER, TUNNEL_OPTIONS
from ansible_collections.iotops.tunnel.plugins.plugin_utils.aws_environment import aws_environment
from ansible_collections.iotops.tunnel.plugins.plugin_utils.controller import ControllerAction
from ansible_collections.iotops.tunnel.plugins.plugin_utils.thing import thing_of_task
from ansible_collections.iotops.tunnel.plugins.plugin_utils.thing_lock import thing_lock
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client


class ActionModule(ControllerAction):
    """Opens, rotates or closes through the module, and keeps the hub in step."""

    def run(self, tmp=None, task_vars=None):
        """Return the module's result, without tokens unless they are asked for."""
        super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(TUNNEL_OPTIONS, required_together=REQUIRED_TOGETHER)
        self._task_vars = task_vars
        self._task_environment = self.task_environment()
        self._aws = aws_environment(options, self._task_environment)
        thing = thing_of_task(options["thing_name"], task_vars, self._templar)
        try:
            self._chosen_ports = parse_ports(options["ports"])
        except ValueError as error:
            raise AnsibleActionFail(f"{error} Set ports for {thing}.") from None
        if not options["tunnel_id"]:
            options["thing_name"] = thing

        try:
            with thing_lock(thing):
                result, tokens = self._provide(thing, options)
        except client.HubError as error:
            raise AnsibleActionFail(str(error)) from error
        if options["return_tokens"] and tokens:
            result["tokens"] = tokens
        return result

    def _provide(self, thing: str, options: dict) -> tuple[dict, dict[str, str]]:
        """Run the module and tell the hub. Return the result, and the tokens that this task got by end."""
        result, tokens = self._module(options)
        result["thing_name"] = result.get("thing_name") or thing
        if options["state"] == "absent":
            self._release(result)
        elif result.get("tunnel_id"):
            self._hand_over(result, tokens, options)
        return result, tokens

    def _module(self, options: dict) -> tuple[dict, dict[str, str]]:
        """Run the module. Return its result, and the tokens that it got by end."""
        return self.run_with_keys("iotops.tunnel.tunnel", options, self._task_vars, self._aws)

    def _hand_over(self, result: dict, tokens: dict[str, str], options: dict) -> None:
        """Make the hub hold the tunnel, with a token that this task got or else with a new one."""
        try:
            if "source" not in tokens and not client.holds(result["tunnel_id"]):
                result["changed"] = True
                if self._task.check_mode or result.get("failed"):
                    return
                self._rotate_source(result, tokens, options)
            if "source" in tokens:
                self._adopt(result, tokens["source"], options)
            else:
                self._listen(result)
            result["ports"] = _ports(result["tunnel_id"])
        except client.HubError as error:
            # Why the module failed, if it did, comes before what that led to.
            if not result.get("failed"):
                result.update(failed=True, msg=str(error))

    def _listen(self, result: dict) -> None:
        """Have the services of a tunnel that the hub holds already listen where they should."""
        now = _ports(result["tunnel_id"])
        wanted = self._chosen_ports.items()
        moves = {name: port for name, port in wanted if port != now.get(name) and not (port == 0 and name in now)}
        if moves:
            result["changed"] = True
            if not self._task.check_mode:
                client.ensure(result["thing_name"], result["services"][0], ports=moves)

    def _rotate_source(self, result: dict, tokens: dict[str, str], options: dict) -> None:
        """Nobody but the hub keeps a source token, so that a hub without it needs another."""
        again = {**options, "tunnel_id": result["tunnel_id"], "rotate": "source", "tags": None}
        rotation, fresh = self._module({**again, "wait_for_destination": 0})
        tokens.update(fresh)
        if rotation.get("failed"):
            result.update(failed=True, msg=rotation["msg"])

    def _adopt(self, result: dict, source_token: str, options: dict) -> None:
        client.adopt(
            result["thing_name"],
            tunnel_id=result["tunnel_id"],
            region=result["region"],
            source_token=source_token,
            services=result.get("services", options["services"]),
            endpoint=self._setting(options["tunnel_endpoint"], "AWSIOT_TUNNEL_ENDPOINT"),
            capath=self._setting(options["tunnel_capath"], "AWSIOT_TUNNEL_CAPATH"),
            expires_at=_epoch(result.get("expires_at")),
            ports=self._chosen_ports,
            aws=self._aws,
        )

    def _setting(self, option: str | None, name: str) -> str | None:
        return option or self._task_environment.get(name) or os.environ.get(name)

    def _release(self, result: dict) -> None:
        """Let the hub drop what is closed now."""
        if not self._task.check_mode:
            for tunnel_id in result.get("closed", ()):
                client.release(tunnel_id)


def _epoch(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None


def _ports(tunnel_id: str) -> dict[str, int]:
    """Loopback ports of the services that have one, by service."""
    tunnels = (client.status() or {}).get("tunnels", ())
    services = next((row["services"] for row in tunnels if row["tunnel_id"] == tunnel_id), {})
    return {name: service["port"] for name, service in services.items() if service.get("port")}
