# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory plugin iotops.tunnel.things: things of AWS IoT or of the self-hosted tunneling service, as hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: things
short_description: Things of AWS IoT, or of the self-hosted tunneling service, as hosts
version_added: 0.1.0
author:
  - The iotops.tunnel authors (@iotops)
description:
  - Adds a host for each thing in the thing registry or fleet index of AWS IoT, or in the registry of the self-hosted
    tunneling service. The hosts are reached through their tunnels.
  - The configuration file must be named C(things.yml) or C(things.yaml), or end with C(.things.yml) or C(.things.yaml).
  - The self-hosted service supports the API calls of AWS IoT that list things. Its things are those that were enrolled
    with C(tunnelproxy service add-thing). It has no thing groups and no index.
options:
  plugin:
    description: Marks the file as a configuration of this plugin.
    type: str
    required: true
    choices: [iotops.tunnel.things]
  attributes:
    description:
      - Attributes that a thing must have, with their values.
      - They need not be indexed. The registry itself searches by the first one, so put the rarest first.
    type: dict
    default: {}
  thing_types:
    description: Thing types. A thing must have one of them.
    type: list
    elements: str
    default: []
  thing_groups:
    description:
      - Thing groups. A thing must be in one of them, directly or in a subgroup.
      - Without O(query), the whole registry is read, because the list of a group contains only names. In a large
        registry, O(query) takes fewer API calls.
    type: list
    elements: str
    default: []
  query:
    description:
      - Query to the fleet index of AWS IoT, such as V(connectivity.connected:true AND attributes.line:3).
      - Fleet indexing must be enabled. If connectivity is indexed, the index knows whether a thing is connected; if
        shadows are indexed, it knows the thing's shadow.
    type: str
  index:
    description: Name of the index to send O(query) to.
    type: str
    default: AWS_Things
  filters:
    description:
      - Jinja2 expressions with the host's variables. A thing becomes a host only if all of them are true.
    type: list
    elements: str
    default: []
  exclude:
    description:
      - Jinja2 expressions with the host's variables. A thing becomes a host only if none of them is true.
    type: list
    elements: str
    default: []
  hostname:
    description:
      - Jinja2 expression with the host's variables for the host's name. The default is the thing's name.
      - If a group, a host from another source, or a thing in another account already has the name, the host is named
        C(THING.ACCOUNT.REGION), such as V(gw.123456789012.eu-central-1), or C(THING.thing) if the account is not known.
        A warning gives both names.
      - If the expression fails or gives an invalid name, the thing's name is used, with a warning. With O(strict), it
        is an error.
    type: str
  hostvars_prefix:
    description:
      - Prefix of the names of variables; see the notes.
    type: str
    default: thing_
  set_connection:
    description:
      - Whether to set C(ansible_connection=iotops.tunnel.ssh) for the hosts.
      - C(iotops_tunnel_thing), the thing's name, is always set.
    type: bool
    default: true
  region:
    description:
      - AWS region of the things, such as V(eu-central-1).
      - Defaults to the environment variable E(AWS_REGION) or E(AWS_DEFAULT_REGION), then to the profile's region.
  endpoint_url:
    description:
      - URL of the registry and of the control API, if the tunneling service is not AWS.
      - Defaults to the environment variable E(AWS_ENDPOINT_URL_IOT), then to E(AWS_ENDPOINT_URL_IOTSECURETUNNELING).
notes:
  - With the default O(hostvars_prefix), all hosts have the variables C(thing_name), C(thing_type) (null if there is
    none) and C(thing_attributes) (a dictionary).
  - Hosts from the registry also have C(thing_arn) and C(thing_version) and, with O(thing_groups), C(thing_groups), the
    listed groups that the thing is in.
  - Hosts from the index also have C(thing_id), C(thing_groups), C(thing_shadow) and C(thing_connectivity), with
    C(connected), C(since) (seconds since 1970) and C(disconnect_reason).
  - Values that come from things are never evaluated as templates.
  - The options that select the account (O(profile), O(region), O(endpoint_url) and so on) may be templates, such as
    V({{ lookup('env', 'THE_PROFILE'\) }}). Those that are set in the file become variables of its hosts, such as
    C(iotops_tunnel_profile), so that their tunnels are opened in the same account. The others come from the
    environment, then from the section C([iotops_tunnel]) of C(ansible.cfg), for the registry and for tunnels.
  - O(access_key), O(secret_key) and O(session_token) become variables only if they are templates or encrypted with
    C(ansible-vault), because C(ansible-inventory --list) shows variables. In plain text, they are used only for the
    registry. Set O(profile) instead.
  - Things whose names are not valid in AWS IoT are skipped with a warning.
  - Throttled calls are retried with increasing delays, up to five times, or as often as E(AWS_MAX_ATTEMPTS) says.
extends_documentation_fragment:
  - iotops.tunnel.aws
  - constructed
  - inventory_cache
"""

EXAMPLES = r"""
# all.things.yml: all things in a region
plugin: iotops.tunnel.things
region: eu-central-1

---
# The pumps at a site, grouped by line, with the user from an attribute; the registry is read once an hour
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
# Gateways that are connected, according to the fleet index, and a group of those on battery
plugin: iotops.tunnel.things
query: connectivity.connected:true AND thingGroupNames:gateways
groups:
  on_battery: thing_shadow.reported.power | default('mains') == 'battery'
exclude:
  - thing_name is match('test-')

---
# Two accounts in one inventory: this file is for one account, a second file for the other
plugin: iotops.tunnel.things
profile: production
region: eu-central-1
hostname: thing_name ~ '.production'

---
# The things of a self-hosted tunneling service; set its variables with: eval "$(tunnelproxy service env)"
plugin: iotops.tunnel.things
"""

import hashlib
import json
import os
from dataclasses import asdict

from ansible import constants
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.iotops.tunnel.plugins.module_utils._names import valid_name
from ansible_collections.iotops.tunnel.plugins.plugin_utils._aws_environment import AWS_OPTIONS, caller_for
from ansible_collections.iotops.tunnel.plugins.plugin_utils._host_names import HostNames, KnownThing, Origin, is_fit
from ansible_collections.iotops.tunnel.plugins.plugin_utils._task_account import CONNECTION, configured_options
from ansible_collections.iotops.tunnel.plugins.plugin_utils._thing_registry import Selection, Thing, things
from ansible_collections.iotops.tunnel.tunnelproxy.hub.client import Caller, HubError

NAME = "iotops.tunnel.things"

_MOST_WARNINGS = 5

_SECRET_OPTIONS = ("access_key", "secret_key", "session_token")
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_IOT", "AWS_ENDPOINT_URL_IOTSECURETUNNELING", "AWS_ENDPOINT_URL")
_CONFIG_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Reads things from the registry or the cache, and adds them as hosts."""

    NAME = NAME

    _keys_groups = False

    def verify_file(self, path):
        """Return whether the name of the file is one for this plugin."""
        name = os.path.basename(path)
        names = ("things.yml", "things.yaml")
        return super().verify_file(path) and (name in names or name.endswith(tuple(f".{each}" for each in names)))

    def parse(self, inventory, loader, path, cache=True):
        """Add the things that the file at C(path) selects to the inventory."""
        super().parse(inventory, loader, path, cache=cache)
        self._name_warnings = []
        config = self._read_config_data(path)
        self._check_options(config, path)
        selection = self._selection()
        # This loads the connection plugin for the workers too, which are forked from this process.
        caller = self._caller(config, configured_options())
        origin = _origin(caller)
        found = self._cached(path, cache, selection, caller, origin)
        common = {**self._account_variables(config, path), **self._connection_variable()}
        # Complete before any host is added: if an expression fails with strict, none is.
        hosts = self._hosts(found, origin, common)
        # Groups come last: a host whose name a group already has would be mistaken for the group.
        for host, variables in hosts.items():
            self._add(host, variables)
        for host, variables in hosts.items():
            self._add_to_groups(host, variables)
        self._keys_groups = True
        for host, variables in hosts.items():
            self._add_to_keyed_groups(host, variables)

    def _check_options(self, config, path):
        """Reject unknown options, which ansible-core ignores: with a misspelt filter, everything would be selected."""
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

    def _rendered(self, name):
        """An option that may be a template."""
        # ansible-core 2.18 evaluates lookups only with this argument, which later releases deprecate.
        lookups = {} if hasattr(self.templar, "evaluate_expression") else {"disable_lookups": False}
        return self.templar.template(self.get_option(name), **lookups)

    def _caller(self, config, configured):
        """Return the hub's caller: this process, with the account of the file, the environment, and ansible.cfg."""
        options = {name: self._rendered(name) for name in AWS_OPTIONS if config.get(name) is not None}
        try:
            return caller_for(options, defaults=configured)
        except ValueError as error:
            raise AnsibleParserError(str(error)) from None

    def _account_variables(self, config, path):
        """Return variables with which tunnels to the hosts open in the registry's account, if the file selects it."""
        given = [name for name in AWS_OPTIONS if config.get(name) is not None]
        variables = {
            f"iotops_tunnel_{name}": wrap_var(self._rendered(name)) for name in given if name not in _SECRET_OPTIONS
        }
        secrets = {name: config[name] for name in given if name in _SECRET_OPTIONS}
        if any(self._is_plain(value) for value in secrets.values()):
            # ansible-inventory --list would print them.
            self.display.warning(
                f"The keys in {path} are in plain text, so they are used only for the registry: tunnels to its hosts "
                "use the credentials of the environment. Set profile, or use templates for the keys, such as a lookup, "
                "or encrypt them with ansible-vault."
            )
            return variables
        return {**variables, **{f"iotops_tunnel_{name}": value for name, value in secrets.items()}}

    def _is_plain(self, value):
        """Whether a value is neither a template nor encrypted, and would be shown in clear text."""
        return isinstance(value, str) and not self.templar.is_template(value)

    def _connection_variable(self):
        return {"ansible_connection": CONNECTION} if self.get_option("set_connection") else {}

    def _cached(self, path, cache, selection, caller, origin):
        """Return the things, from the cache if it has them and C(cache) is true (false with --flush-cache)."""
        if not self.get_option("cache"):
            return self._read(selection, caller)
        # Each selection and each registry has its own entry.
        key = f"{self.get_cache_key(path)}_{_digest([asdict(selection), *origin])}"
        if cache:
            try:
                return [Thing(**known) for known in self._cache[key]]
            except KeyError:
                pass
        found = self._read(selection, caller)
        self._cache[key] = [asdict(thing) for thing in found]
        return found

    def _read(self, selection, caller):
        try:
            return things(caller, selection)
        except HubError as error:
            # With a cause, ansible-core would append that error's message.
            raise AnsibleParserError(str(error)) from None

    def _hosts(self, found, origin, common):
        """Return variables by host, for the things that are not filtered out."""
        prefix = self.get_option("hostvars_prefix")
        names = HostNames(self.inventory, self._own_groups())
        hosts = {}
        for thing in found:
            if not self._is_thing(thing.name):
                continue
            # Devices and others can write these values: they are data, never templates.
            variables = wrap_var({f"{prefix}{name}": value for name, value in thing.known().items()})
            variables |= {**common, "iotops_tunnel_thing": wrap_var(thing.name)}
            if not self._wanted(thing, variables):
                continue
            host = self._host(names, KnownThing(thing.name, thing.arn, origin), variables)
            if host is not None:
                hosts[host] = variables
        names.keep()
        self._warn_of_names()
        return hosts

    def _is_thing(self, name):
        try:
            valid_name("thing", name)
        except ValueError as error:
            self._name_warnings.append(f"A thing in the registry is skipped: {error}")
            return False
        return True

    def _own_groups(self):
        """The names of the groups that the file always creates, whatever the attributes of things are."""
        parents = [keyed.get("parent_group") for keyed in self.get_option("keyed_groups") if isinstance(keyed, dict)]
        return [self._sanitize_group_name(name) for name in (*self.get_option("groups"), *filter(None, parents))]

    def _host(self, names, thing, variables):
        """Return the name of a thing's host, or None if there is no free name."""
        wanted = self._hostname(thing, variables)
        host, reason = names.give(wanted, thing)
        if reason:
            outcome = f"It becomes the host {host}" if host else "It is skipped, because its longer name is taken too"
            self._name_warnings.append(
                f"The thing {thing.name} cannot be the host {wanted}: {reason}. {outcome}. Set hostname to an "
                "expression that gives each a different name."
            )
        return host

    def _warn_of_names(self):
        """Show only some of the warnings: two accounts may have a thousand names in common."""
        for warning in self._name_warnings[:_MOST_WARNINGS]:
            self.display.warning(warning)
        more = len(self._name_warnings) - _MOST_WARNINGS
        if more > 0:
            self.display.warning(f"Similar warnings not shown: {more}.")

    def _add(self, host, variables):
        self.inventory.add_host(host)
        for name, value in variables.items():
            self.inventory.set_variable(host, name, value)
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=self.get_option("strict"))

    def _add_to_groups(self, host, variables):
        strict = self.get_option("strict")
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)

    def _add_to_keyed_groups(self, host, variables):
        strict = self.get_option("strict")
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, host, strict=strict)

    def _sanitize_group_name(self, name):
        """Rename a keyed group that has the name of a host, because a pattern would then match only the group."""
        name = group = super()._sanitize_group_name(name)
        while self._keys_groups and group in self.inventory.hosts:
            group += "_group"
        if group != name and group not in self.inventory.groups:
            self.display.warning(
                f"keyed_groups would create a group {name}, but a host has that name. The group is called {group}. Set "
                "a prefix in keyed_groups."
            )
        return group

    def _wanted(self, thing, variables):
        # An expression that uses a variable that the thing does not have is false.
        if not all(self._holds("filters", text, thing, variables) for text in self.get_option("filters")):
            return False
        return not any(self._holds("exclude", text, thing, variables) for text in self.get_option("exclude"))

    def _holds(self, option, expression, thing, variables):
        try:
            return boolean(self._compose(expression, variables), strict=False)
        except AnsibleError as error:
            if self.get_option("strict"):
                raise AnsibleParserError(
                    f"{option}: {expression!r} cannot be evaluated for the thing {thing.name}: {error}"
                ) from None
            return False

    def _hostname(self, thing, variables):
        """Return the result of the option C(hostname) for a thing, or the thing's name if that is not a valid name."""
        expression = self.get_option("hostname")
        if not expression:
            return thing.name
        try:
            name = self._compose(expression, variables)
        except AnsibleError as error:
            problem = f"hostname cannot be evaluated for the thing {thing.name}: {error}"
        else:
            if is_fit(name):
                return str(name)
            problem = (
                f"hostname is {str(name)[:80]!r} for the thing {thing.name}. It must be a string of letters, digits, "
                "spaces and any of _ . : + = @ -, and begin with a letter or digit."
            )
        if self.get_option("strict"):
            raise AnsibleParserError(problem)
        self._name_warnings.append(f"{problem} The thing's name is used.")
        return thing.name


def _origin(caller: Caller) -> Origin:
    """Identify the registry by AWS's environment variables, except secrets, and by the configuration files."""
    environment = caller.environment
    asked = {
        name: value for name, value in environment.items() if name.startswith("AWS_") and name not in _SECRET_VARIABLES
    }
    files = [_content(environment.get(name) or default) for name, default in _CONFIG_FILES.items()]
    endpoint = next(filter(None, (environment.get(name) for name in _ENDPOINT_VARIABLES)), "")
    return Origin(_digest([asked, files]), endpoint)


def _content(path: str) -> str:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
