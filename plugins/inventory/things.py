# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory plugin iotops.tunnel.things: the things of AWS IoT, or of the tunneling service, as hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: things
short_description: The things of AWS IoT, or of the self-hosted tunneling service, as hosts
version_added: 0.1.0
author:
  - The iotops.tunnel authors (@iotops)
description:
  - Makes a host of each thing in the registry of AWS IoT, in its fleet index, or in the registry of the self-hosted
    tunneling service, to be reached through its tunnel.
  - The name of its configuration file ends in C(.things.yml) or C(.things.yaml), or is C(things.yml).
  - The tunneling service answers the calls of AWS IoT that list things. Its things are those that were enrolled with
    C(tunnelproxy service add-thing). It has no thing groups and no index.
options:
  plugin:
    description: Marks the file as one for this plugin.
    type: str
    required: true
    choices: [iotops.tunnel.things]
  attributes:
    description:
      - Attributes, and the values that a thing must have in them.
      - They need not be indexed. The first is looked for by the registry itself, so the rarest should come first.
    type: dict
    default: {}
  thing_types:
    description: Types of things, of which a thing must have one.
    type: list
    elements: str
    default: []
  thing_groups:
    description:
      - Thing groups, in one of which a thing must be, by itself or through a group within.
      - Without O(query), all pages of the registry are read for it, as a group's list has no more than names. In a
        large registry, O(query) takes fewer calls.
    type: list
    elements: str
    default: []
  query:
    description:
      - Query in the language of AWS IoT's fleet index, such as V(connectivity.connected:true AND attributes.line:3).
      - Fleet indexing must be on. The index knows whether a thing is connected, if it indexes connectivity, and its
        shadow, if it indexes that.
    type: str
  index:
    description: Name of the index that O(query) is for.
    type: str
    default: AWS_Things
  filters:
    description:
      - Jinja2 expressions over the host's variables. All of them must be true for a thing to become a host.
    type: list
    elements: str
    default: []
  exclude:
    description:
      - Jinja2 expressions over the host's variables. None of them may be true for a thing to become a host.
    type: list
    elements: str
    default: []
  hostname:
    description:
      - Jinja2 expression, over the host's variables, for the host's name. By default that is the thing's name.
    type: str
  hostvars_prefix:
    description:
      - What the names of the variables begin with. See the notes.
    type: str
    default: thing_
  set_connection:
    description:
      - Whether the hosts get C(ansible_connection=iotops.tunnel.ssh).
      - They get C(iotops_tunnel_thing), the thing's name, in any case.
    type: bool
    default: true
  region:
    description:
      - AWS region of the things, such as V(eu-central-1).
      - The environment variables E(AWS_REGION) or E(AWS_DEFAULT_REGION), else the profile, is used without it.
  endpoint_url:
    description:
      - URL of the registry, for a tunneling service other than AWS. There it is the URL of the control API.
      - The environment variable E(AWS_ENDPOINT_URL_IOT) is used when this is not set.
notes:
  - The variables, with the default O(hostvars_prefix), are C(thing_name), C(thing_type) (null if it has none) and
    C(thing_attributes) (a dictionary); from the registry C(thing_arn) and C(thing_version); with O(thing_groups)
    C(thing_groups), those of them that it is in; from the index C(thing_id), C(thing_groups), C(thing_shadow), and
    C(thing_connectivity), with C(connected), C(since) (seconds since the epoch) and C(disconnect_reason).
  - Values of things are never taken for templates.
  - The options for credentials may be templates, such as V({{ lookup('env', 'THE_KEY'\) }}). They are for the registry
    alone; the hub has its own from the environment.
  - A call that is throttled is repeated up to five times, or as E(AWS_MAX_ATTEMPTS) says, after waits that grow.
extends_documentation_fragment:
  - iotops.tunnel.aws
  - constructed
  - inventory_cache
"""

EXAMPLES = r"""
# All things of a region: file all.things.yml
plugin: iotops.tunnel.things
region: eu-central-1

---
# The pumps of a site, grouped by line, with the user that their attribute names, and read once an hour
plugin: iotops.tunnel.things
thing_types: [pump]
attributes:
  site: north
keyed_groups:
  - key: thing_attributes.line
    prefix: line
compose:
  ansible_user: thing_attributes.user | default('admin')
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/iotops-things
cache_timeout: 3600

---
# Those that are connected now, by the fleet index, with those on battery apart
plugin: iotops.tunnel.things
query: connectivity.connected:true AND thingGroupNames:gateways
groups:
  on_battery: thing_shadow.reported.power | default('mains') == 'battery'
exclude:
  - thing_name is match('test-')

---
# The things of a tunneling service of one's own; its variables come from: eval "$(tunnelproxy service env)"
plugin: iotops.tunnel.things
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict

from ansible import constants
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.plugins.loader import connection_loader
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.iotops.tunnel.plugins.module_utils.aws_client import (
    BOTO3_IMPORT_ERROR,
    AwsClient,
    ControlApiError,
)
from ansible_collections.iotops.tunnel.plugins.module_utils.tunnel_options import AWS_OPTIONS
from ansible_collections.iotops.tunnel.plugins.plugin_utils.aws_environment import REGISTRY_ENDPOINT, aws_environment
from ansible_collections.iotops.tunnel.plugins.plugin_utils.thing_registry import REGISTRY, Selection, Thing, things

NAME = "iotops.tunnel.things"
CONNECTION = "iotops.tunnel.ssh"


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Reads the things, from the cache where it may, and makes hosts of them."""

    NAME = NAME

    def verify_file(self, path):
        """Say whether the file's name is one for this plugin."""
        name = os.path.basename(path)
        names = ("things.yml", "things.yaml")
        return super().verify_file(path) and (name in names or name.endswith(tuple(f".{each}" for each in names)))

    def parse(self, inventory, loader, path, cache=True):
        """Add the things that the file at C(path) describes to the inventory."""
        super().parse(inventory, loader, path, cache=cache)
        self._check_options(self._read_config_data(path), path)
        selection = self._selection()
        environment = self._environment()
        # All of them, or, if one will not do, none.
        for host, variables in self._hosts(self._cached(path, cache, selection, environment)).items():
            self._add(host, variables)
        if self.get_option("set_connection"):
            # Here, once: workers are forked from this process, and each would load it afresh for its one task.
            connection_loader.get(CONNECTION, class_only=True)

    def _check_options(self, config, path):
        """Refuse what ansible-core would ignore: a filter with a slip in its name would select everything."""
        known = constants.config.get_configuration_definitions("inventory", self._load_name)
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise AnsibleParserError(
                f"{path} sets {', '.join(unknown)}, which {NAME} does not have. See: ansible-doc -t inventory {NAME}"
            )

    def _selection(self):
        return Selection(
            query=self.get_option("query"),
            index=self.get_option("index"),
            thing_types=tuple(self.get_option("thing_types")),
            thing_groups=tuple(self.get_option("thing_groups")),
            attributes={name: str(value) for name, value in self.get_option("attributes").items()},
        )

    def _environment(self):
        """How the registry is reached, by the names of environment variables."""
        # ansible-core 2.18 templates no lookups unless it is told to, and later releases complain if they are.
        lookups = {} if hasattr(self.templar, "evaluate_expression") else {"disable_lookups": False}
        options = {name: self.templar.template(self.get_option(name), **lookups) for name in AWS_OPTIONS}
        if bool(options["access_key"]) != bool(options["secret_key"]):
            raise AnsibleParserError("access_key and secret_key belong together: set both, or neither.")
        return aws_environment(options, {}, REGISTRY_ENDPOINT)

    def _cached(self, path, cache, selection, environment):
        """Return the things, from the cache unless that has none, is off, or C(cache) is false: --flush-cache."""
        if not self.get_option("cache"):
            return self._read(selection, environment)
        key = _cache_key(self.get_cache_key(path), selection, environment)
        if cache:
            try:
                return [Thing(**known) for known in self._cache[key]]
            except KeyError:
                pass
        found = self._read(selection, environment)
        self._cache[key] = [asdict(thing) for thing in found]
        return found

    def _read(self, selection, environment):
        if BOTO3_IMPORT_ERROR:
            raise AnsibleParserError(
                f"The inventory of things needs boto3, and Ansible's Python has none: {sys.executable} -m pip install "
                "boto3"
            )
        try:
            client = AwsClient(REGISTRY, environment, validate_certs=self.get_option("validate_certs"))
            return things(client, selection)
        except ControlApiError as error:
            # ansible-core adds a cause's words to these.
            raise AnsibleParserError(str(error)) from None

    def _hosts(self, found):
        """Return variables by host, for the things that are not filtered out."""
        prefix = self.get_option("hostvars_prefix")
        hosts = {}
        for thing in found:
            # What devices and others write there is data, and never a template.
            variables = wrap_var({f"{prefix}{name}": value for name, value in thing.known().items()})
            if not self._wanted(thing, variables):
                continue
            host = self._hostname(thing, variables)
            if host in hosts:
                raise AnsibleParserError(
                    f"The things {hosts[host]['iotops_tunnel_thing']} and {thing.name} would both be the host {host}. "
                    "Make hostname an expression that tells them apart."
                )
            hosts[host] = {**variables, "iotops_tunnel_thing": thing.name}
        return hosts

    def _add(self, host, variables):
        self.inventory.add_host(host)
        if self.get_option("set_connection"):
            variables = {**variables, "ansible_connection": CONNECTION}
        for name, value in variables.items():
            self.inventory.set_variable(host, name, value)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, host, strict=strict)

    def _wanted(self, thing, variables):
        # A thing that lacks what a filter speaks of is not meant by it.
        if not all(self._holds("filters", text, thing, variables) for text in self.get_option("filters")):
            return False
        return not any(self._holds("exclude", text, thing, variables) for text in self.get_option("exclude"))

    def _holds(self, option, expression, thing, variables):
        try:
            return boolean(self._compose(expression, variables), strict=False)
        except AnsibleError as error:
            if self.get_option("strict"):
                raise AnsibleParserError(
                    f"{option} has {expression!r}, which cannot be told of the thing {thing.name}: {error}"
                ) from None
            return False

    def _hostname(self, thing, variables):
        expression = self.get_option("hostname")
        if not expression:
            return thing.name
        try:
            name = self._compose(expression, variables)
        except AnsibleError as error:
            raise AnsibleParserError(f"hostname cannot be told of the thing {thing.name}: {error}") from None
        if not isinstance(name, str) or not name:
            raise AnsibleParserError(f"hostname is {name!r} for the thing {thing.name}. It must be a text.")
        return name


def _cache_key(key, selection, environment):
    """Another question, or one to another registry, is another entry."""
    asked = [asdict(selection), *(environment.get(name) for name in (REGISTRY_ENDPOINT, "AWS_REGION", "AWS_PROFILE"))]
    return f"{key}_{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]}"
