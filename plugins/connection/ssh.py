# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connection plugin iotops.tunnel.ssh: ansible.builtin.ssh over the tunnel that the hub holds for the device."""

from __future__ import annotations

DOCUMENTATION = r"""
name: ssh
short_description: Connect by SSH through a secure tunnel
version_added: 0.1.0
author:
  - The iotops.tunnel authors (@iotops)
description:
  - Runs the controller's ssh, sftp and scp, like P(ansible.builtin.ssh#connection), and has the same options. The
    connection is a stream of the secure tunnel that the hub holds for the device.
  - If the hub holds no tunnel, the plugin reuses an open tunnel of the same owner, or opens one; see O(open).
  - A device is identified by its account and its thing name, both in SSH's known hosts (see O(host_key_alias)) and in
    the path of the control socket. C(ansible_host) and C(ansible_port) are ignored.
  - Host variables select the account, such as C(iotops_tunnel_profile), C(iotops_tunnel_region) and, for a self-hosted
    tunneling service, C(iotops_tunnel_endpoint_url). What they do not set comes from the task's C(environment), then
    from the environment of Ansible, as it would for C(aws). Of the task's C(environment), only variables that select
    the account are used, not C(PATH) or an HTTP proxy.
  - A device that returns facts named like options of this collection is reported as unreachable.
  - ssh writes its own messages to a file (C(-E)), so that output of the device cannot be mistaken for them. Another
    C(-E) in ssh's arguments has no effect.
  - If a file transfer fails while the device can be reached, the next transfer method is tried, as with
    P(ansible.builtin.ssh#connection).
  - A device that cannot be reached is reported as unreachable, with the reason. C(-vvv) shows each argument that is
    passed to ssh, and why.
options:
  thing_name:
    description:
      - Name of the thing.
      - Defaults to the host's name in the inventory; with C(delegate_to), to the delegate's.
      - With C(delegate_to), C(inventory_hostname) is the delegate's name in this and all other C(iotops_tunnel_*)
        variables of the delegate. Elsewhere, Ansible uses the name of the host that the task is for. A task whose own
        C(vars) set such a variable from C(inventory_hostname) is rejected, because the result is ambiguous.
    type: string
    vars:
      - name: iotops_tunnel_thing
  service:
    description:
      - Service of the tunnel that leads to the device's SSH server.
    type: string
    default: SSH1
    vars:
      - name: iotops_tunnel_service
  answer_timeout:
    description:
      - Seconds to wait for the device to answer on a new connection.
      - A destination proxy tries to reach the SSH server for 10 seconds before it rejects the connection; the one from
        AWS tries for 12.5 seconds.
    type: int
    default: 20
    vars:
      - name: iotops_tunnel_answer_timeout
  ports:
    description:
      - Where services listen on the controller's loopback address, each as V(SERVICE=PORT), V(SERVICE=any) or
        V(SERVICE=off), for example V(HTTP1=5555). Services that are not listed keep their port, or get any free one.
      - The port of an HTTP service accepts only requests for the device's own name, such as C(pump-7.localhost), and,
        from programs other than browsers, for C(127.0.0.1). With V(,any-host), as in V(HTTP1=5555,any-host), it accepts
        requests for any host, including requests from any web page that you open.
      - If a port is not available, the device is unreachable, with the reason. SSH services have no port.
    type: list
    elements: string
    default: []
    vars:
      - name: iotops_tunnel_ports
  health_check:
    description:
      - Whether to request O(health_path) from the device's HTTP server before each new SSH connection. If the device is
        not healthy, it is reported as unreachable, with its answer.
      - Tasks that share an SSH connection (C(ControlPersist), see O(ssh_args)) send one request.
    type: boolean
    default: false
    vars:
      - name: iotops_tunnel_health_check
  health_service:
    description:
      - Service of the tunnel that leads to the device's HTTP server.
    type: string
    default: HTTP1
    vars:
      - name: iotops_tunnel_health_service
  health_path:
    description:
      - Path to request, including the query if there is one.
    type: string
    default: /
    vars:
      - name: iotops_tunnel_health_path
  health_status:
    description:
      - HTTP status codes of a healthy device.
    type: list
    elements: integer
    default: [200]
    vars:
      - name: iotops_tunnel_health_status
  host_key_alias:
    description:
      - Name of the device in SSH's known hosts.
      - V(auto) uses the thing's name in the first account where this controller saw that name, and
        C(THING.ACCOUNT.REGION), such as V(gw.123456789012.eu-central-1), in all other accounts. The file
        C(ssh-names.jsonl), in E(IOTOPS_TUNNEL_DIR) or C(~/.local/state/tunnelproxy), records which account was first.
      - V(account) always uses C(THING.ACCOUNT.REGION), for known hosts that several controllers share.
      - V(thing) always uses the thing's name. Things with the same name in two accounts must then have the same host
        key.
    type: string
    choices: [auto, account, thing]
    default: auto
    env:
      - name: IOTOPS_TUNNEL_HOST_KEY_ALIAS
    vars:
      - name: iotops_tunnel_host_key_alias
    ini:
      - section: iotops_tunnel
        key: host_key_alias
  facts:
    description:
      - Do not set this. These are the facts that the device returned, in which names of options are rejected.
    vars:
      - name: ansible_facts
  host:
    description:
      - Do not set this. The plugin sets it to the thing name.
    vars:
      - name: inventory_hostname
  port:
    description:
      - Ignored. The device decides which address a service leads to.
  ssh_args:
    description:
      - Arguments for ssh, sftp and scp, as in P(ansible.builtin.ssh#connection).
      - If they are not set, and the device's proxy is known to speak V3, an SSH connection that tasks share is kept for
        ten minutes after its last use, instead of one (C(ControlPersist)). The hub has the tunnel anyway. An older
        proxy allows only one connection per service, which others may be waiting for.
  pipelining:
    description:
      - Whether to send modules to the device on the standard input of its Python, instead of copying them to files.
        That saves several round trips for each task.
      - It is on by default, unlike in P(ansible.builtin.ssh#connection), unless the task uses C(become) with a method
        other than P(ansible.builtin.sudo#become). If sudo on the device requires a terminal (C(Defaults requiretty)),
        modules are copied. The device is asked for that with C(sudo -n), before its first task with C(become) and then
        once an hour.
      - If it is set anywhere, it applies to all tasks, and the device is not asked.
    type: boolean
    default: true
    env:
      - name: ANSIBLE_PIPELINING
      - name: ANSIBLE_SSH_PIPELINING
    ini:
      - section: defaults
        key: pipelining
      - section: connection
        key: pipelining
      - section: ssh_connection
        key: pipelining
    vars:
      - name: ansible_pipelining
      - name: ansible_ssh_pipelining
extends_documentation_fragment:
  - iotops.tunnel.opening
  - iotops.tunnel.account
  - iotops.tunnel.ssh
"""

EXAMPLES = r"""
- name: Reach devices through their tunnels, and open those that are missing
  hosts: devices
  gather_facts: false
  connection: iotops.tunnel.ssh
  tasks:
    - name: Show the uptime of each device
      ansible.builtin.command: uptime
      changed_when: false

# A thing with another name than the host, in another account
- name: Wait for one device
  hosts: devices[0]
  gather_facts: false
  connection: iotops.tunnel.ssh
  vars:
    iotops_tunnel_thing: pump-7
    iotops_tunnel_profile: staging
    iotops_tunnel_region: eu-central-1
  tasks:
    - name: Open its tunnel, and wait for the device
      ansible.builtin.wait_for_connection:
        timeout: 60
"""

import contextlib
import os
import re
import shlex
import subprocess
import time
from typing import Any

from ansible import constants
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection.ssh import AnsibleControlPersistBrokenPipeError
from ansible.plugins.connection.ssh import Connection as SshConnection
from ansible.utils.display import Display
from ansible_collections.iotops.tunnel.plugins.module_utils._names import valid_name
from ansible_collections.iotops.tunnel.plugins.module_utils._ports import parse_ports
from ansible_collections.iotops.tunnel.plugins.plugin_utils._aws_environment import (
    AWS_OPTIONS,
    Opener,
    caller_for,
    opener_for,
)
from ansible_collections.iotops.tunnel.plugins.plugin_utils._device_facts import refuse_device_facts
from ansible_collections.iotops.tunnel.plugins.plugin_utils._pipelining import sudo_requires_tty
from ansible_collections.iotops.tunnel.plugins.plugin_utils._ssh_options import define_options
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client

define_options(__name__, DOCUMENTATION)

display = Display()

_PREFIX = "iotops_tunnel_"
_ENSURED_SECONDS = 10.0

# Error codes of a missing tunnel, for which another one is opened if O(open) allows it.
_WOULD_OPEN = ("no-tunnel", "tunnel-closed", "taken-over", "reused-elsewhere")

# Options that make ssh do something other than connect.
_QUERIES = ("-O", "-G")

# sshpass ends with this status if ssh asks whether to accept a host key. It may also be the command's own status.
_SSHPASS_UNKNOWN_KEY = 6

# In ansible-core's exception, ssh's stderr follows these words.
_NOT_SENT = "can be reached over ssh:"

# In ansible-core's default of ssh_args, and what takes its place.
_KEPT = b"ControlPersist=60s"
_KEPT_LONGER = b"ControlPersist=600s"

# What HTTP allows as the target of a request (RFC 9112, section 3.2.1).
_HTTP_PATH = re.compile(r"/[!-~]*\Z")


class Connection(SshConnection):
    """ansible.builtin.ssh over a stream of a tunnel. It explains each failure to reach the device."""

    transport = "iotops.tunnel.ssh"

    # Process ID of the hub that held the tunnel when the task began, and until when the hub need not be asked again.
    _hub_pid: int | None = None
    _ensured_until = 0.0
    # Where the tunnel is, as client.locate and client.ensure return it.
    _location: dict
    _thing_name: Any = None
    # Whether the user has set the path of the control socket.
    _has_control_path = False
    # Why the plugin must not connect to the device, whatever the hub says.
    _rejection: str | None = None
    _caller: client.Caller
    _opener: Opener
    # The host's variables before templating, and the templar, until set_options.
    _unresolved: tuple | None = None

    def _resolve_option_variables(self, variables, templar):
        """Leave the collection's variables to set_options, which knows the delegate, and is called next."""
        self._unresolved = variables, templar
        others = {name: value for name, value in variables.items() if not name.startswith(_PREFIX)}
        return super()._resolve_option_variables(others, templar)

    def _resolve_own_variables(self, task_keys):
        """Template the collection's variables. Raises ValueError if those of a delegate are ambiguous.

        In the variables of a delegate, ansible-core keeps C(inventory_hostname) as the name of the host that the task
        is for. Variables built from it would lead to that host's device, or to its account.
        """
        if self._unresolved is None:
            return {}
        (variables, templar), self._unresolved = self._unresolved, None
        resolve = super()._resolve_option_variables
        own = {name: value for name, value in variables.items() if name.startswith(_PREFIX)}
        delegate = task_keys.get("delegate_to")
        if not delegate:
            return resolve(own, templar)
        templar.available_variables = {**variables, "inventory_hostname": delegate}
        try:
            found = resolve(own, templar)
        finally:
            templar.available_variables = variables
        of_task = {name: value for name, value in own.items() if name in (task_keys.get("vars") or ())}
        _check_delegate(delegate, found, resolve(of_task, templar), of_task)
        return found

    def set_options(self, task_keys=None, var_options=None, direct=None):
        """Read the options. The thing's name serves as the host until the hub returns the device's name for ssh."""
        task_keys = task_keys or {}
        self._rejection = None
        try:
            var_options = {**(var_options or {}), **self._resolve_own_variables(task_keys)}
        except ValueError as error:
            self._rejection = str(error)
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        # With delegate_to, inventory_hostname is still the host that the task is for.
        delegate, host = task_keys.get("delegate_to"), self.get_option("host")
        self._thing_name = self.get_option("thing_name") or delegate or host
        self._location = {}
        self._ensured_until = 0.0
        self._has_control_path = bool(self.get_option("control_path"))
        try:
            refuse_device_facts(self.get_option("facts"), delegate or host)
            self._caller = self._find_caller(var_options or {}, task_keys.get("environment"))
            self._opener = self._find_opener(var_options or {})
        except ValueError as error:
            self._rejection = self._rejection or str(error)
        self.set_option("host", self._thing_name)
        self.set_option("port", None)

    def _find_caller(self, variables, task_environment):
        """Return the caller for the hub, from the host's variables, the task's environment and ansible.cfg."""
        given: dict = {}
        defaults: dict = {}
        for name in AWS_OPTIONS:
            layer = given if f"iotops_tunnel_{name}" in variables else defaults
            layer[name] = self.get_option(name)
        layers = task_environment if isinstance(task_environment, list) else [task_environment]
        environment = {name: value for layer in layers if isinstance(layer, dict) for name, value in layer.items()}
        return caller_for(given, defaults=defaults, task_environment=environment)

    def _find_opener(self, variables):
        """Return for whom tunnels are opened, and to which things."""
        given: dict = {}
        defaults: dict = {}
        for name in ("owner", "unregistered"):
            layer = given if f"{_PREFIX}{name}" in variables else defaults
            layer[name] = self.get_option(name)
        return opener_for(self._caller, given, defaults)

    @property
    def has_pipelining(self):
        """Whether modules can be sent on standard input. ansible-core asks before it looks at the option."""
        if not self.become or self.get_option_and_origin("pipelining")[1] != "default":
            return True
        return self.become.name == "sudo" and not self._sudo_requires_tty()

    def _sudo_requires_tty(self):
        self._ensure_tunnel_of_task()
        return sudo_requires_tty(
            os.path.expanduser(self.get_option("control_path_dir")),
            f"{self.get_option('remote_user')}@{self._location['qualified_name']}",
            self.become.get_option("become_exe") or "sudo",
            self.become.get_option("become_user") or "root",
            lambda command: self.exec_command(command, sudoable=False)[2],
        )

    def exec_command(self, cmd, in_data=None, sudoable=True):
        """Run a command on the device."""
        self._ensure_tunnel_of_task()
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)

    def put_file(self, in_path, out_path):
        """Copy a file to the device."""
        self._ensure_tunnel_of_task()
        return super().put_file(in_path, out_path)

    def fetch_file(self, in_path, out_path):
        """Copy a file from the device."""
        self._ensure_tunnel_of_task()
        return super().fetch_file(in_path, out_path)

    def transport_test(self, connect_timeout):
        """Make sure that a tunnel is connected, for wait_for_connection, which retries."""
        self._ensure_tunnel(wait=float(connect_timeout))

    def reset(self):
        """Close the SSH connection that tasks share, if there is one."""
        try:
            self._locate()
        except AnsibleConnectionFailure as error:
            display.vvv(f"No connection to reset: {error}", host=self._thing_name)
            return
        super().reset()

    def _ensure_tunnel_of_task(self):
        """Ask the hub once for the steps of a task, such as creating a directory and copying a file."""
        if time.monotonic() >= self._ensured_until:
            self._ensure_tunnel()
            self._ensured_until = time.monotonic() + _ENSURED_SECONDS

    def _ensure_tunnel(self, wait=None):
        """Make sure that the hub holds a connected tunnel, or fail before ssh runs."""
        thing = self._thing()
        services = [self._checked(name, "iotops_tunnel_services") for name in self.get_option("services")]
        policy = self.get_option("open")
        # Reject invalid options before a tunnel is paid for.
        check = self._health_check()
        lacks_check = check is not None and policy != "never" and check.service not in services
        local = self._ports()
        with self._unreachable(thing):
            try:
                row = client.ensure(
                    thing,
                    self._service(),
                    open_policy="never" if lacks_check else policy,
                    services=services,
                    ports=local.ports,
                    any_host=local.any_host,
                    wait=float(self.get_option("wait_for_destination")) if wait is None else wait,
                    timeout=float(self.get_option("timeout")),
                    owner=self._opener.owner,
                    unregistered=self._opener.unregistered,
                    caller=self._caller,
                )
            except client.HubError as error:
                if not lacks_check or error.code not in _WOULD_OPEN:
                    raise
                raise client.HubError(
                    f"there is no usable tunnel to {thing}, and a new one would carry only {', '.join(services)}, not "
                    f"{check.service} for the health check: add {check.service} to iotops_tunnel_services, or set "
                    "iotops_tunnel_health_service",
                    code="bad-input",
                ) from None
        self._hub_pid = row.get("hub_pid")
        if row.get("taken_from"):
            display.warning(
                f"The tunnel to {thing} belonged to {row['taken_from']}, whose connections to the device have ended. "
                f"It now belongs to {row['owner']}."
            )
        if row.get("not_saved"):
            display.warning(f"The hub {row['not_saved']}.")
        self._set_location(row)

    def _locate(self):
        """Ask the hub for the thing's account, without opening a tunnel."""
        thing = self._thing()
        with self._unreachable(thing):
            self._set_location(client.locate(thing, caller=self._caller))

    def _set_location(self, location):
        self._location = location
        self.set_option("host", location["ssh_name"])
        if not self._has_control_path:
            # With the account: things with the same name in two accounts must not share a connection.
            name = f"{location['account']}/{location['ssh_name']}"
            self.set_option("control_path", self._create_control_path(name, None, self.get_option("remote_user")))

    @contextlib.contextmanager
    def _unreachable(self, thing):
        """Report an error of the hub as an unreachable device."""
        try:
            yield
        except client.HubError as error:
            # An error of the hub itself does not name the thing.
            about = f"{thing} cannot be reached: " if error.code == "hub-failed" else ""
            raise AnsibleConnectionFailure(f"{about}{error}") from None

    def _host_key_alias(self):
        names = {"thing": self._thing(), "account": self._location["qualified_name"]}
        return names.get(self.get_option("host_key_alias"), self._location["host_key_name"])

    def _ports(self):
        try:
            return parse_ports(self.get_option("ports"))
        except ValueError as error:
            raise AnsibleConnectionFailure(f"{error} Set iotops_tunnel_ports for {self._thing()}.") from None

    def _health_check(self):
        """Return the health check before a new SSH connection, or None."""
        if not self.get_option("health_check"):
            return None
        service = self._checked(self.get_option("health_service"), "iotops_tunnel_health_service")
        path = self.get_option("health_path")
        if not _HTTP_PATH.match(path):
            raise AnsibleConnectionFailure(
                f"{path!r} is not a valid path for an HTTP request: it must begin with /, contain no spaces, and have "
                f"non-ASCII characters percent-encoded. Set iotops_tunnel_health_path for {self._thing()}."
            )
        try:
            statuses = tuple(int(status) for status in self.get_option("health_status"))
        except ValueError as error:
            raise AnsibleConnectionFailure(
                f"An HTTP status code is a number ({error}). Set iotops_tunnel_health_status for {self._thing()}."
            ) from None
        return client.HealthCheck(service, path, statuses)

    def _thing(self):
        if self._rejection:
            raise AnsibleConnectionFailure(self._rejection)
        try:
            return valid_name("thing", self._thing_name)
        except ValueError as error:
            # Not chained: ansible-core 2.19 appends the message of the cause.
            raise AnsibleConnectionFailure(f"{error} Set iotops_tunnel_thing for this host.") from None

    def _service(self):
        return self._checked(self.get_option("service"), "iotops_tunnel_service")

    def _checked(self, service, variable):
        try:
            return valid_name("service", service)
        except ValueError as error:
            raise AnsibleConnectionFailure(f"{error} Set {variable} for {self._thing()}.") from None

    def _add_args(self, b_command, b_args, explanation):
        """Add arguments, and log the reason with -vvv. The base class logs it only with -vvvvv."""
        display.vvv(f"SSH: {explanation}: ({')('.join(to_text(arg) for arg in b_args)})", host=self.host)
        b_command += b_args

    def _build_command(self, binary, subsystem, *other_args):
        """Add the connection to the device to the base class's command. ssh uses the first value of an option."""
        command = super()._build_command(binary, subsystem, *other_args)
        thing, service = self._thing(), self._service()
        connector = client.connector_command(
            thing,
            service,
            account=self._location["account"],
            timeout=float(self.get_option("answer_timeout")),
            health_check=self._health_check(),
        )
        # ssh redirects the stderr of its proxy command to /dev/null if it stays as a control master.
        redirected = ["/bin/sh", "-c", 'exec "$@" 2>"$0"', self._connector_log(), *connector]
        proxy_command = shlex.join(redirected).replace("%", "%%")

        required: list[bytes] = []
        why = f"reach {service} of {thing} through the hub"
        if self.get_option("health_check"):
            why += f", if {self.get_option('health_service')} reports that it is healthy"
        self._add_args(required, _options(f"ProxyCommand={proxy_command}"), why)
        self._add_args(
            required, _options("ProxyUseFdpass=yes"), "receive the connection itself, so that no byte is copied"
        )
        alias = self._host_key_alias()
        self._add_args(required, _options(f"HostKeyAlias={alias}"), "identify the host key by thing and account")
        defaults: list[bytes] = []
        alive = _options("ServerAliveInterval=15", "ServerAliveCountMax=3")
        self._add_args(defaults, alive, "detect a dead connection within a minute, unless ssh's arguments set it")

        if subsystem == "ssh" and not any(query in other_args[:2] for query in _QUERIES):
            # ssh uses the last -E.
            log = [b"-E", to_bytes(self._ssh_log(), errors="surrogate_or_strict")]
            self._add_args(defaults, log, "separate ssh's own messages from the output of the device")

        if self._keeps_connections():
            command = [_KEPT_LONGER if part == _KEPT else part for part in command]
            self._add_args([], _options(_KEPT_LONGER), "keep the connection for ten minutes: the device allows several")
        first = command.index(to_bytes(binary, errors="surrogate_or_strict")) + 1
        last = len(command) - len(other_args)
        return [*command[:first], *required, *command[first:last], *defaults, *command[last:]]

    def _keeps_connections(self):
        """Whether to keep a connection for longer than ansible-core does."""
        is_default = self.get_option_and_origin("ssh_args")[1] == "default"
        return is_default and self._location.get("destination_version") == "V3"

    def _connector_log(self):
        """Return the path of the file, in Ansible's private directory, for the stderr of the connector."""
        return os.path.join(constants.DEFAULT_LOCAL_TMP, f"iotops-tunnel-{os.getpid()}-{id(self):x}")

    def _ssh_log(self):
        """Return the path of the file for ssh's own messages."""
        return f"{self._connector_log()}.log"

    def _bare_run(self, cmd, in_data, sudoable=True, checkrc=True):
        """Run ssh, sftp or scp once, and explain a failure to reach the device."""
        # sftp and scp write no log.
        is_ssh = to_bytes(self._ssh_log(), errors="surrogate_or_strict") in cmd
        try:
            with _plain_shell(), self._own_host_key_check():
                returncode, stdout, stderr = super()._bare_run(cmd, in_data, sudoable=sudoable, checkrc=checkrc)
        except AnsibleConnectionFailure as error:
            self._ensured_until = 0.0
            ended, stderr = str(error).partition(_NOT_SENT)[1:]
            # ansible-core also raises this if the device was reached, but asked for no password.
            self._explain("explain_ssh" if ended else "explain_killed", stderr.strip())
            raise
        else:
            if returncode == _SSHPASS_UNKNOWN_KEY and cmd[0] == b"sshpass" and self.get_option("host_key_checking"):
                self._explain("explain_sshpass")
            # Any other status of ssh is that of the command.
            if returncode == 255 or (returncode and not is_ssh):
                self._ensured_until = 0.0
                text = to_text(stderr, errors="surrogate_or_replace")
                self._explain("explain_ssh" if is_ssh else "explain_transfer", text)
            return returncode, stdout, to_bytes(_read(self._ssh_log()) or "") + stderr
        finally:
            for path in (self._connector_log(), self._ssh_log()):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    @contextlib.contextmanager
    def _own_host_key_check(self):
        """Keep the base class from searching the device's output for a rejected host key.

        With a password, it would fail the task for such output, whatever the status of ssh.
        """
        checking = self.get_option("host_key_checking")
        self.set_option("host_key_checking", False)
        try:
            yield
        finally:
            self.set_option("host_key_checking", checking)

    def _file_transport_command(self, in_path, out_path, sftp_action):
        """Transfer a file. Try each allowed method until one succeeds."""
        try:
            return super()._file_transport_command(in_path, out_path, sftp_action)
        except AnsibleConnectionFailure as error:
            # ansible-core raises this for a single method with status 255, which it mistakes for ssh's.
            failed, text = str(error).partition("Failed to connect to the host via ")[1:]
            method, words = text.partition(": ")[::2]
            if not failed or method not in ("sftp", "scp") or not self._is_still_up():
                raise
            raise AnsibleError(
                f"{self._thing()} can be reached, but {method} cannot transfer a file ({' '.join(words.split())}): set "
                "ansible_ssh_transfer_method to smart, which also tries the other methods, or to piped, which needs "
                "only dd on the device"
            ) from None

    def _explain(self, explain, stderr=""):
        """Raise the explanation that a function of _ssh_failure returns for this run of ssh, if there is one."""
        # Imported here, because few workers need it, and Ansible compiles the collection's modules in each.
        from ansible_collections.iotops.tunnel.plugins.plugin_utils import _ssh_failure  # noqa: PLC0415

        output = _ssh_failure.SshOutput(_read(self._ssh_log()), stderr, _read(self._connector_log()))
        if _ssh_failure.lost_master(output):
            raise AnsibleControlPersistBrokenPipeError(output.log)
        target = _ssh_failure.Target(self._thing(), self._service(), self._location["account"], self._host_key_alias())
        probes = _ssh_failure.Probes(self._is_still_up, self._ssh_config, self._hub_pid)
        sentence = getattr(_ssh_failure, explain)(output, target, probes)
        if sentence:
            raise AnsibleConnectionFailure(sentence) from None

    def _is_still_up(self):
        """Whether the SSH connection that tasks share is up."""
        return self._query_ssh("-O", "check", self.host).returncode == 0

    def _ssh_config(self):
        """Return ssh's options by their names in lower case, or C(failure), the reason why ssh has none."""
        done = self._query_ssh("-G", self.host)
        if done.returncode:
            # LogLevel may have suppressed the reason.
            done = self._query_ssh("-v", "-G", self.host)
            return {"failure": to_text(done.stderr, errors="surrogate_or_replace")}
        return dict(line.partition(" ")[::2] for line in to_text(done.stdout).splitlines())

    def _query_ssh(self, *query):
        executable = to_bytes(self.get_option("ssh_executable"))
        command = self._build_command(executable, "ssh", *query)
        # Without sshpass: a query needs no password.
        command = command[command.index(executable) :]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603  no shell


def _read(path):
    """Return the content of a file, or None if there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _plain_shell():
    """Make ssh run its proxy command with /bin/sh.

    ssh runs it with the user's shell, whose stdin is a socket. bash then assumes that rshd started it, and reads
    ~/.bashrc unless it runs below another bash, as under cron. That takes time, and ssh would read its output as the
    stream.
    """
    users = os.environ.get("SHELL")
    os.environ["SHELL"] = "/bin/sh"
    try:
        yield
    finally:
        if users is None:
            del os.environ["SHELL"]
        else:
            os.environ["SHELL"] = users


def _check_delegate(delegate, found, as_host, names):
    """Reject a task's own variable that differs between delegate and host. Its values, maybe secrets, are not shown."""
    for name in names:
        if found.get(name) != as_host.get(name):
            raise ValueError(
                f"delegate_to: {delegate} is ambiguous: the task's own {name} is built from inventory_hostname, and "
                f"differs between the host that the task is for and {delegate}. Set {name} for {delegate} in the "
                "inventory, or write the value itself in the task."
            )


def _options(*options):
    return [part for option in options for part in (b"-o", to_bytes(option))]
