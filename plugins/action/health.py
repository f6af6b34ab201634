# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugin iotops.tunnel.health: one HTTP GET through the tunnel, on the controller."""

from __future__ import annotations

import http.client
import socket
import time
from dataclasses import dataclass

from ansible.plugins.action import ActionBase
from ansible_collections.iotops.tunnel.plugins.module_utils.names import valid_name
from ansible_collections.iotops.tunnel.plugins.plugin_utils.thing import thing_of_task
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client

OPTIONS = {
    "thing_name": {"type": "str"},
    "service": {"type": "str", "default": "HTTP1"},
    "path": {"type": "str", "default": "/"},
    "headers": {"type": "dict", "default": {}},
    "status_code": {"type": "list", "elements": "int", "default": [200]},
    "return_content": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 15},
}

CONTENT_LIMIT = 1024 * 1024


class Unhealthy(Exception):
    """The device did not answer; the text is a sentence for the operator."""


@dataclass(frozen=True)
class Answer:
    """What the device's HTTP server said, and how long its headers took."""

    status: int
    latency_ms: float
    content: str


class ActionModule(ActionBase):
    """Asks the hub for the way, and the device for its health."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Return status, latency and the state of both ends; fail with the reason if the device is not well."""
        result = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(OPTIONS)
        thing = thing_of_task(options["thing_name"], task_vars, self._templar)
        result.update(changed=False, thing_name=thing)
        try:
            service = valid_name("service", options["service"])
            client.ensure(thing, service, timeout=options["timeout"])
            port = self._look(thing, service, result)
            answer = _get(thing, service, port, options)
        except (client.HubError, Unhealthy, ValueError) as error:
            result.update(failed=True, msg=str(error))
            return result
        result.update(status=answer.status, latency_ms=answer.latency_ms)
        if options["return_content"]:
            result["content"] = answer.content
        if answer.status not in options["status_code"]:
            expected = ", ".join(str(status) for status in options["status_code"])
            msg = f"{thing} answered {options['path']} with status {answer.status}, not {expected}."
            result.update(failed=True, msg=msg)
        return result

    def _look(self, thing: str, service: str, result: dict) -> int:
        """Put the state of both ends into the result. Return the service's port on the loopback address."""
        row = client.describe(thing)
        result.update({key: row.get(key) for key in ("source", "destination", "round_trip_ms")})
        if row.get("destination") == "disconnected":
            raise client.explain(thing, service, refused=True)
        if service not in row["services"]:
            offered = ", ".join(sorted(row["services"])) or "none"
            raise Unhealthy(
                f"The tunnel of {thing} does not offer {service}; its services: {offered}. Open one that does."
            )
        port = row["services"][service].get("port")
        if not port:
            raise Unhealthy(f"The hub has no port for {service} of {thing}. Name an HTTP service, such as HTTP1.")
        result["url"] = f"http://127.0.0.1:{port}/"
        return port


def _get(thing: str, service: str, port: int, options: dict) -> Answer:
    """Send the request. No web proxy and no redirect comes into it: the port leads to this device only."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=options["timeout"])
    headers = {"Host": thing, "User-Agent": "iotops.tunnel", **options["headers"]}
    started = time.monotonic()
    try:
        connection.request("GET", options["path"], headers={name: str(value) for name, value in headers.items()})
        response = connection.getresponse()
        latency_ms = round((time.monotonic() - started) * 1000, 1)
        content = response.read(CONTENT_LIMIT).decode("utf-8", "replace") if options["return_content"] else ""
        return Answer(response.status, latency_ms, content)
    except socket.timeout:
        raise Unhealthy(
            f"{thing} took the connection to {service} but did not answer {options['path']} within "
            f"{options['timeout']} s. See how busy its HTTP server is, or raise timeout."
        ) from None
    except ConnectionError:
        raise client.explain(thing, service, refused=True) from None
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise Unhealthy(
            f"{thing} answered {service} with something that is not HTTP ({error}). See what it maps {service} to."
        ) from None
    finally:
        connection.close()
