# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin iotops.tunnel.tunnel_info: describes and lists tunnels."""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.iotops.tunnel.plugins.module_utils._tunnel_options import INFO_OPTIONS, REQUIRED_TOGETHER
from ansible_collections.iotops.tunnel.plugins.plugin_utils._control_api import ControlApi, Tunnel
from ansible_collections.iotops.tunnel.plugins.plugin_utils._task_account import caller_of_task, check_facts_of_task
from ansible_collections.iotops.tunnel.plugins.plugin_utils._thing import thing_of_task
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client


class ActionModule(ActionBase):
    """Calls the control API through the hub."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    def run(self, tmp=None, task_vars=None):
        """Return the tunnels that the options select."""
        result = super().run(tmp, task_vars)
        check_facts_of_task(task_vars)
        _checked, options = self.validate_argument_spec(INFO_OPTIONS, required_together=REQUIRED_TOGETHER)
        thing = None
        if not options["tunnel_id"] and not options["all_things"]:
            thing = thing_of_task(options["thing_name"], task_vars, self._templar)
        caller = caller_of_task(self, options, task_vars)
        try:
            tunnels = [facts(tunnel) for tunnel in find(ControlApi(caller), thing, options)]
            where = client.locate(thing, caller=caller)
        except client.HubError as error:
            result.update(changed=False, failed=True, msg=str(error))
            return result
        result.update(changed=False, region=where["region"], account=where["account_name"], tunnels=tunnels)
        return result


def find(api: ControlApi, thing: str | None, options: dict) -> list[Tunnel]:
    """Return the tunnels that the options select."""
    status = None if options["status"] == "any" else options["status"]
    if options["tunnel_id"]:
        found = [tunnel for tunnel in api.described(options["tunnel_id"]) if status in (None, tunnel.status)]
    else:
        found = list(api.tunnels(thing, status))
    tags = {key: str(value) for key, value in options["tags"].items()}
    return [tunnel for tunnel in found if tags.items() <= tunnel.tags.items()]


def facts(tunnel: Tunnel) -> dict:
    """Return the description of a tunnel, ready for JSON."""
    return {
        "tunnel_id": tunnel.tunnel_id,
        "tunnel_arn": tunnel.arn,
        "status": tunnel.status,
        "thing_name": tunnel.thing_name,
        "services": list(tunnel.services),
        "description": tunnel.description,
        "owner": tunnel.owner,
        "tags": tunnel.tags,
        "source": tunnel.source,
        "destination": tunnel.destination,
        "lifetime": tunnel.lifetime,
        "created_at": tunnel.created_at.isoformat() if tunnel.created_at else None,
        "expires_at": tunnel.expires_at.isoformat() if tunnel.expires_at else None,
    }
