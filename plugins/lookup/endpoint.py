# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup plugin iotops.tunnel.endpoint: the local address of a service of a thing."""

from __future__ import annotations

DOCUMENTATION = r"""
name: endpoint
short_description: URL or address, on the controller, of a thing's service
version_added: 0.1.0
author:
  - The iotops.tunnel authors (@iotops)
description:
  - Returns the URL, or the host and port, at which the hub makes a service of a thing available on the controller.
  - If the hub has no tunnel to the thing, it reuses an open tunnel of the same owner, or opens one; see O(open).
  - The port stays the same while the hub holds the tunnel. SSH services have no port.
options:
  _terms:
    description: Names of services, such as V(HTTP1).
    type: list
    elements: string
    required: true
  thing:
    description:
      - Name of the thing.
      - Defaults to the host's name in the inventory.
    type: string
    vars:
      - name: iotops_tunnel_thing
  form:
    description:
      - V(url) is a URL for programs, such as V(http://127.0.0.1:40123).
      - V(page) is a URL for browsers, such as V(http://pump-7.localhost:40123). Browsers resolve that name to the
        loopback address, and keep the cookies of devices apart. Other programs may not resolve it. C(curl) does, and
        M(ansible.builtin.uri) does if the system resolves such names.
      - V(host_port) is an address, such as V(127.0.0.1:40123).
      - V(port) is a number, such as V(40123).
    type: string
    choices: [url, page, host_port, port]
    default: url
  scheme:
    description:
      - Scheme of the URL.
      - Defaults to V(http), or to V(https) for the V(page) of a service such as V(HTTPS1).
    type: string
  path:
    description: Path of the URL, including the query if there is one.
    type: string
    default: ""
  timeout:
    description: Seconds to wait for the hub to connect to the tunnel.
    type: int
    default: 10
  facts:
    description: Do not set this. These are the facts that the device returned, in which names of options are rejected.
    type: dict
    vars:
      - name: ansible_facts
extends_documentation_fragment:
  - iotops.tunnel.opening
  - iotops.tunnel.account
notes:
  - What the options do not set comes from the task's C(environment), then from the environment of Ansible
    (E(AWS_PROFILE), E(AWS_REGION) and so on), as it would for C(aws). Of the task's C(environment), only variables that
    select the account are used, not C(PATH) or an HTTP proxy.
  - With C(delegate_to), the thing is that of the host that the task is for, not of the delegate.
seealso:
  - module: iotops.tunnel.tunnel
  - plugin: iotops.tunnel.ssh
    plugin_type: connection
"""

EXAMPLES = r"""
- name: Request the version of the device's web server
  ansible.builtin.uri:
    url: "{{ lookup('iotops.tunnel.endpoint', 'HTTP1', path='/version') }}"
  delegate_to: localhost

- name: Show the URL of the web pages of one thing
  ansible.builtin.debug:
    msg: "{{ lookup('iotops.tunnel.endpoint', 'HTTP1', thing='pump-7', form='page') }}"

- name: Show the ports of both services of a tunnel
  ansible.builtin.debug:
    msg: "{{ query('iotops.tunnel.endpoint', 'HTTP1', 'VNC1', services=['HTTP1', 'VNC1'], form='port') }}"
"""

RETURN = r"""
_raw:
  description: One string or number for each service.
  type: list
  elements: raw
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.iotops.tunnel.plugins.module_utils._names import valid_name
from ansible_collections.iotops.tunnel.plugins.plugin_utils._aws_environment import (
    AWS_OPTIONS,
    caller_for,
    opener_for,
)
from ansible_collections.iotops.tunnel.plugins.plugin_utils._device_facts import refuse_device_facts
from ansible_collections.iotops.tunnel.plugins.plugin_utils._task_environment import task_environment
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client

HOST = "127.0.0.1"


class LookupModule(LookupBase):
    """Gets the ports of services from the hub."""

    def run(self, terms, variables=None, **kwargs):
        """Return one endpoint for each service in C(terms)."""
        self.set_options(var_options=variables, direct=kwargs)
        try:
            refuse_device_facts(self.get_option("facts"), str((variables or {}).get("inventory_hostname")))
            caller = self._caller(variables or {}, kwargs)
            opener = opener_for(caller, *self._layers(("owner", "unregistered"), variables or {}, kwargs))
            name: Any = self._option("thing") or (variables or {}).get("inventory_hostname")
            thing = valid_name("thing", name)
            return [self._endpoint(thing, valid_name("service", service), caller, opener) for service in terms]
        except (client.HubError, ValueError) as error:
            # With a cause, ansible-core would append that error's message.
            raise AnsibleLookupError(str(error)) from None

    def _caller(self, variables, direct):
        given, defaults = self._layers(AWS_OPTIONS, variables, direct)
        return caller_for(given, defaults=defaults, task_environment=task_environment(self._templar))

    def _layers(self, names, variables, direct):
        """Return the options that the lookup's arguments or the host's variables set, and the other ones."""
        given: dict = {}
        defaults: dict = {}
        for name in names:
            layer = given if name in direct or f"iotops_tunnel_{name}" in variables else defaults
            layer[name] = self._option(name)
        return given, defaults

    def _option(self, name):
        """Return an option's value, templated, because values from variables may be templates."""
        return self._templar.template(self.get_option(name))

    def _path(self):
        path = self._option("path")
        if path and not path.startswith("/"):
            raise ValueError(f"The path {path!r} does not begin with a slash. Write path='/{path}'.")
        return path

    def _endpoint(self, thing, service, caller, opener):
        path = self._path()
        row = client.ensure(
            thing,
            service,
            open_policy=self._option("open"),
            services=[valid_name("service", name) for name in self._option("services")],
            wait=float(self._option("wait_for_destination")),
            timeout=float(self._option("timeout")),
            owner=opener.owner,
            unregistered=opener.unregistered,
            caller=caller,
        )
        port = row["services"].get(service, {}).get("port")
        if not port:
            raise ValueError(
                f"The hub has no port for {service} of {thing}: SSH services have none. Use another service, such as "
                "HTTP1."
                if service.upper().startswith("SSH")
                else f"The hub has no port for {service} of {thing}. For one, set iotops_tunnel_ports to {service}=any."
            )
        form, scheme = self._option("form"), self._option("scheme")
        if form == "page":
            own_scheme, _separator, rest = self._page(row, thing, service).partition("://")
            return f"{scheme or own_scheme}://{rest.rstrip('/')}{path}"
        endpoints = {"port": port, "host_port": f"{HOST}:{port}", "url": f"{scheme or 'http'}://{HOST}:{port}{path}"}
        return endpoints[form]

    def _page(self, row, thing, service):
        url = row["services"][service].get("url")
        if not url:
            raise ValueError(
                f"{service} of {thing} is not for browsers, because its name does not begin with HTTP. Set form='url' "
                "instead."
            )
        return url
