# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin iotops.tunnel.tunnel: opens, rotates and closes tunnels, and gives source tokens to the hub."""

from __future__ import annotations

from datetime import datetime

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.iotops.tunnel.plugins.module_utils._ports import LocalPorts, parse_ports
from ansible_collections.iotops.tunnel.plugins.module_utils._tunnel_options import REQUIRED_TOGETHER, TUNNEL_OPTIONS
from ansible_collections.iotops.tunnel.plugins.plugin_utils._control_api import ControlApi
from ansible_collections.iotops.tunnel.plugins.plugin_utils._task_account import TaskAccount, check_facts_of_task
from ansible_collections.iotops.tunnel.plugins.plugin_utils._thing import thing_of_task
from ansible_collections.iotops.tunnel.plugins.plugin_utils._thing_lock import thing_lock
from ansible_collections.iotops.tunnel.plugins.plugin_utils._tunnel_task import (
    TunnelTask,
    TunnelTaskError,
    checked_options,
)
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client


class ActionModule(ActionBase):
    """Calls the control API through the hub, and updates the hub. Tokens stay in this process and the hub."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    def run(self, tmp=None, task_vars=None):
        """Return a description of the tunnel, with tokens only if they are requested."""
        result = super().run(tmp, task_vars)
        check_facts_of_task(task_vars)
        _checked, options = self.validate_argument_spec(TUNNEL_OPTIONS, required_together=REQUIRED_TOGETHER)
        thing = thing_of_task(options["thing_name"], task_vars, self._templar)
        self._local = _parsed_ports(options["ports"], thing)
        self._account = TaskAccount(self, options, task_vars)
        try:
            options = checked_options(options)
            where = client.locate(thing, caller=self._account.caller)
            with thing_lock(where["account"], thing):
                result.update(self._provide(thing, options, where))
        except (client.HubError, ValueError) as error:
            result.update(changed=False, failed=True, msg=str(error))
        return result

    def _provide(self, thing: str, options: dict, where: dict) -> dict:
        """Run the task and update the hub. Return the result, with tokens only if they are requested."""
        task = TunnelTask(
            ControlApi(self._account.caller),
            thing,
            options,
            owner=self._account.owner,
            unregistered=self._account.unregistered,
            check_mode=self._task.check_mode,
        )
        task.result.update(region=where["region"], account=where["account_name"])
        try:
            task.run()
        except (client.HubError, TunnelTaskError, ValueError) as error:
            task.result.update(failed=True, msg=str(error))
        if options["state"] == "absent":
            self._release(task.result, where["account"])
        elif task.result.get("tunnel_id"):
            self._hand_over(task, where["account"])
        if options["return_tokens"] and task.tokens:
            task.result["tokens"] = task.tokens
        return task.result

    def _hand_over(self, task: TunnelTask, account: str) -> None:
        """Give the tunnel to the hub, with a token that this task obtained, or else with a new one."""
        result = task.result
        try:
            if "source" not in task.tokens and not client.holds(result["tunnel_id"], account):
                result["changed"] = True
                if task.check_mode or result.get("failed"):
                    return
                task.rotate_source()
            if "source" in task.tokens:
                self._adopt(task)
            else:
                self._listen(task)
            services = _services(result["tunnel_id"])
            result["ports"] = {name: service["port"] for name, service in services.items()}
            result["urls"] = {name: service["url"] for name, service in services.items() if service.get("url")}
        except client.HubError as error:
            # The reason why the task failed comes before its consequences.
            if not result.get("failed"):
                result.update(failed=True, msg=str(error))

    def _listen(self, task: TunnelTask) -> None:
        """Change the ports of services if the hub already has the tunnel."""
        result = task.result
        now = _services(result["tunnel_id"])
        moves = {name: port for name, port in self._local.ports.items() if self._is_new(name, port, now.get(name))}
        if moves:
            result["changed"] = True
            if not task.check_mode:
                client.ensure(
                    result["thing_name"],
                    result["services"][0],
                    ports=moves,
                    any_host=self._local.any_host,
                    caller=self._account.caller,
                )

    def _is_new(self, name: str, port: int | None, now: dict | None) -> bool:
        """Whether the port of a service, or the hosts that it accepts, must change."""
        if now is None:
            return port is not None
        return port not in (0, now["port"]) or (name in self._local.any_host) != now.get("any_host", False)

    def _adopt(self, task: TunnelTask) -> None:
        result = task.result
        row = client.adopt(
            result["thing_name"],
            tunnel_id=result["tunnel_id"],
            tunnel_arn=result["tunnel_arn"],
            source_token=task.tokens["source"],
            services=result["services"],
            owner=self._account.owner,
            expires_at=_epoch(result.get("expires_at")),
            ports=self._local.ports,
            any_host=self._local.any_host,
            caller=self._account.caller,
        )
        if row.get("not_saved"):
            result["warnings"] = [f"The hub {row['not_saved']}."]

    def _release(self, result: dict, account: str) -> None:
        """Make the hub forget the tunnels that are closed now."""
        if not self._task.check_mode:
            for tunnel_id in result.get("closed", ()):
                client.release(tunnel_id, account)


def _parsed_ports(choices: list, thing: str) -> LocalPorts:
    try:
        return parse_ports(choices)
    except ValueError as error:
        raise AnsibleActionFail(f"{error} Set ports for {thing}.") from None


def _epoch(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None


def _services(tunnel_id: str) -> dict[str, dict]:
    """The hub's description of those services of a tunnel that have a port on the loopback address."""
    tunnels = (client.status() or {}).get("tunnels", ())
    services: dict = next((row["services"] for row in tunnels if row["tunnel_id"] == tunnel_id), {})
    return {name: service for name, service in services.items() if service.get("port")}
