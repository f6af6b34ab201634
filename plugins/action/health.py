# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin iotops.tunnel.health: one HTTP GET through the tunnel, on the controller."""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.iotops.tunnel.plugins.module_utils._names import valid_name
from ansible_collections.iotops.tunnel.plugins.module_utils._tunnel_options import AWS_OPTIONS, REQUIRED_TOGETHER
from ansible_collections.iotops.tunnel.plugins.plugin_utils._task_account import caller_of_task, check_facts_of_task
from ansible_collections.iotops.tunnel.plugins.plugin_utils._thing import thing_of_task
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client

OPTIONS = {
    "thing_name": {"type": "str"},
    "service": {"type": "str", "default": "HTTP1"},
    "path": {"type": "str", "default": "/"},
    "headers": {"type": "dict", "default": {}},
    "status_code": {"type": "list", "elements": "int", "default": [200]},
    "return_content": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 15},
    **AWS_OPTIONS,
}

CONTENT_LIMIT = 1024 * 1024


class ActionModule(ActionBase):
    """Sends a request through the hub's tunnel."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Return status, latency and the state of both ends; fail with the reason if the device is not healthy."""
        result = super().run(tmp, task_vars)
        check_facts_of_task(task_vars)
        _checked, options = self.validate_argument_spec(OPTIONS, required_together=REQUIRED_TOGETHER)
        thing = thing_of_task(options["thing_name"], task_vars, self._templar)
        caller = caller_of_task(self, options, task_vars)
        result.update(changed=False, thing_name=thing)
        try:
            service = valid_name("service", options["service"])
            row = client.ensure(thing, service, timeout=options["timeout"], caller=caller)
            result["account"] = row["account_name"]
            self._look(thing, service, caller, result)
            answer = client.ask_health(
                thing,
                service,
                options["path"],
                account=row["account"],
                headers={name: str(value) for name, value in options["headers"].items()},
                content_limit=CONTENT_LIMIT if options["return_content"] else 0,
                timeout=options["timeout"],
            )
        except (client.HubError, ValueError) as error:
            result.update(failed=True, msg=str(error))
            return result
        result.update(status=answer.status, latency_ms=answer.latency_ms)
        if options["return_content"]:
            result["content"] = answer.content.decode("utf-8", "replace")
        if answer.status not in options["status_code"]:
            expected = ", ".join(str(status) for status in options["status_code"])
            msg = f"{thing} answered {options['path']} with status {answer.status}, not {expected}."
            result.update(failed=True, msg=msg)
        return result

    def _look(self, thing: str, service: str, caller: client.Caller, result: dict) -> None:
        """Add the state of both ends, and the URL for browsers if there is one, to the result."""
        row = client.describe(thing, caller=caller)
        result.update({key: row.get(key) for key in ("source", "destination", "round_trip_ms")})
        if row.get("destination") == "disconnected":
            raise client.explain(thing, service, refused=True, account=row["account"])
        url = row["services"][service].get("url")
        if url:
            result["url"] = url
