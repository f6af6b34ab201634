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
      - A name that a group has, or a host from another source, or a thing in another account, is not given twice. The
        host is then called C(THING.ACCOUNT.REGION), such as V(gw.123456789012.eu-central-1), or C(THING.thing) if the
        account is not known, and a warning names both.
      - Where it makes no name of a thing, the thing's name is used, with a warning. With O(strict) it is an error.
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
      - The environment variables E(AWS_REGION) or E(AWS_DEFAULT_REGION), then the profile, are used when this is not
        set.
  endpoint_url:
    description:
      - URL of a tunneling service other than AWS, for its registry as well as for its tunnels.
      - The environment variables E(AWS_ENDPOINT_URL_IOT), then E(AWS_ENDPOINT_URL_IOTSECURETUNNELING), are used when
        this is not set.
notes:
  - The variables, with the default O(hostvars_prefix), are C(thing_name), C(thing_type) (null if it has none) and
    C(thing_attributes) (a dictionary); from the registry C(thing_arn) and C(thing_version); with O(thing_groups)
    C(thing_groups), those of them that it is in; from the index C(thing_id), C(thing_groups), C(thing_shadow), and
    C(thing_connectivity), with C(connected), C(since) (seconds since the epoch) and C(disconnect_reason).
  - Values of things are never taken for templates.
  - The options that say which account is meant (O(profile), O(region), O(endpoint_url) and so on) may be templates,
    such as V({{ lookup('env', 'THE_PROFILE'\) }}). Those that the file sets become variables of its hosts, such as
    C(iotops_tunnel_profile), so that their tunnels are opened in the same account. What is not set there comes from
    the environment, then from the section C([iotops_tunnel]) of C(ansible.cfg), for the registry and for tunnels.
  - O(access_key), O(secret_key) and O(session_token) become variables only if they are templates or encrypted with
    C(ansible-vault), for C(ansible-inventory --list) shows variables. In plain text they are for the registry alone.
    Set O(profile) instead.
  - Names that AWS IoT would not give a thing are left out, with a warning.
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
# Two accounts in one inventory: this file for one of them, and another for the other
plugin: iotops.tunnel.things
profile: production
region: eu-central-1
hostname: thing_name ~ '.production'

---
# The things of a tunneling service of one's own; its variables come from: eval "$(tunnelproxy service env)"
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
    """Reads the things, from the cache where it may, and makes hosts of them."""

    NAME = NAME

    _keys_groups = False

    def verify_file(self, path):
        """Say whether the file's name is one for this plugin."""
        name = os.path.basename(path)
        names = ("things.yml", "things.yaml")
        return super().verify_file(path) and (name in names or name.endswith(tuple(f".{each}" for each in names)))

    def parse(self, inventory, loader, path, cache=True):
        """Add the things that the file at C(path) describes to the inventory."""
        super().parse(inventory, loader, path, cache=cache)
        self._name_warnings = []
        config = self._read_config_data(path)
        self._check_options(config, path)
        selection = self._selection()
        # That loads the connection, which workers have then: they are forked from this process.
        caller = self._caller(config, configured_options())
        origin = _origin(caller)
        found = self._cached(path, cache, selection, caller, origin)
        common = {**self._account_variables(config, path), **self._connection_variable()}
        # All of them, or, if an expression that must hold does not, none.
        hosts = self._hosts(found, origin, common)
        # Groups come last: what is called like a group and not yet a host would be taken for the group.
        for host, variables in hosts.items():
            self._add(host, variables)
        for host, variables in hosts.items():
            self._add_to_groups(host, variables)
        self._keys_groups = True
        for host, variables in hosts.items():
            self._add_to_keyed_groups(host, variables)

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

    def _rendered(self, name):
        """An option that may be a template."""
        # ansible-core 2.18 templates no lookups unless it is told to, and later releases complain if they are.
        lookups = {} if hasattr(self.templar, "evaluate_expression") else {"disable_lookups": False}
        return self.templar.template(self.get_option(name), **lookups)

    def _caller(self, config, configured):
        """Who asks the hub: this process, as the file, the environment, and ansible.cfg have it."""
        options = {name: self._rendered(name) for name in AWS_OPTIONS if config.get(name) is not None}
        try:
            return caller_for(options, defaults=configured)
        except ValueError as error:
            raise AnsibleParserError(str(error)) from None

    def _account_variables(self, config, path):
        """Variables by which the hosts are reached in the account of the registry, if the file says which that is."""
        given = [name for name in AWS_OPTIONS if config.get(name) is not None]
        variables = {
            f"iotops_tunnel_{name}": wrap_var(self._rendered(name)) for name in given if name not in _SECRET_OPTIONS
        }
        secrets = {name: config[name] for name in given if name in _SECRET_OPTIONS}
        if any(self._is_plain(value) for value in secrets.values()):
            # ansible-inventory --list would print them.
            self.display.warning(
                f"The keys in {path} are for the registry alone, as they are in plain text: tunnels to its hosts use "
                "the credentials of the environment. Set profile, or make the keys templates, such as a lookup, or "
                "encrypt them with ansible-vault."
            )
            return variables
        return {**variables, **{f"iotops_tunnel_{name}": value for name, value in secrets.items()}}

    def _is_plain(self, value):
        """Whether a text is neither a template nor encrypted, and so would be shown as it is."""
        return isinstance(value, str) and not self.templar.is_template(value)

    def _connection_variable(self):
        return {"ansible_connection": CONNECTION} if self.get_option("set_connection") else {}

    def _cached(self, path, cache, selection, caller, origin):
        """Return the things, from the cache unless that has none, is off, or C(cache) is false: --flush-cache."""
        if not self.get_option("cache"):
            return self._read(selection, caller)
        # Another question, or one to another registry, is another entry.
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
            # ansible-core adds a cause's words to these.
            raise AnsibleParserError(str(error)) from None

    def _hosts(self, found, origin, common):
        """Return variables by host, for the things that are not filtered out."""
        prefix = self.get_option("hostvars_prefix")
        names = HostNames(self.inventory, self._own_groups())
        hosts = {}
        for thing in found:
            if not self._is_thing(thing.name):
                continue
            # What devices and others write there is data, and never a template.
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
            self._name_warnings.append(f"A thing of the registry is left out: {error}")
            return False
        return True

    def _own_groups(self):
        """The names of groups that the file makes, whatever the attributes of things are."""
        parents = [keyed.get("parent_group") for keyed in self.get_option("keyed_groups") if isinstance(keyed, dict)]
        return [self._sanitize_group_name(name) for name in (*self.get_option("groups"), *filter(None, parents))]

    def _host(self, names, thing, variables):
        """Return the name of a thing's host, or None where it can be none."""
        wanted = self._hostname(thing, variables)
        host, reason = names.give(wanted, thing)
        if reason:
            outcome = f"It becomes the host {host}" if host else "It is left out, for its longer name is taken as well"
            self._name_warnings.append(
                f"The thing {thing.name} cannot be the host {wanted}: {reason}. {outcome}. Set hostname to an "
                "expression that tells them apart."
            )
        return host

    def _warn_of_names(self):
        """Say it of some: two accounts may have a thousand names in common."""
        for warning in self._name_warnings[:_MOST_WARNINGS]:
            self.display.warning(warning)
        more = len(self._name_warnings) - _MOST_WARNINGS
        if more > 0:
            self.display.warning(f"The same holds for the names of {more} more things.")

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
        """Keep a group that is made of an attribute from the name of a host, which a pattern would no longer reach."""
        name = group = super()._sanitize_group_name(name)
        while self._keys_groups and group in self.inventory.hosts:
            group += "_group"
        if group != name and group not in self.inventory.groups:
            self.display.warning(
                f"keyed_groups would make a group {name}, which is the name of a host. The group is {group}. Set its "
                "prefix."
            )
        return group

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
        """Return what the option C(hostname) makes of a thing, or else the thing's name."""
        expression = self.get_option("hostname")
        if not expression:
            return thing.name
        try:
            name = self._compose(expression, variables)
        except AnsibleError as error:
            problem = f"hostname cannot be told of the thing {thing.name}: {error}"
        else:
            if is_fit(name):
                return str(name)
            problem = (
                f"hostname is {str(name)[:80]!r} for the thing {thing.name}. It must be a text that begins with a "
                "letter or digit, and has letters, digits, spaces, and any of _ . : + = @ - only."
            )
        if self.get_option("strict"):
            raise AnsibleParserError(problem)
        self._name_warnings.append(f"{problem} The thing's name is used.")
        return thing.name


def _origin(caller: Caller) -> Origin:
    """What says which registry is asked: all of AWS's variables that are no secrets, and the configuration files."""
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
