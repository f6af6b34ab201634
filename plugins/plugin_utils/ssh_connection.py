# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The class of the connection plugin iotops.tunnel.ssh, whose options its own file documents."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time

from ansible import constants
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection.ssh import AnsibleControlPersistBrokenPipeError
from ansible.plugins.connection.ssh import Connection as SshConnection
from ansible.utils.display import Display
from ansible_collections.iotops.tunnel.plugins.module_utils.names import valid_name
from ansible_collections.iotops.tunnel.plugins.module_utils.ports import parse_ports
from ansible_collections.iotops.tunnel.plugins.plugin_utils.worker import import_module

client = import_module("ansible_collections.iotops.tunnel.tunnelproxy.hub.client")
import_module("ansible_collections.iotops.tunnel.tunnelproxy.hub.tags")  # which aws_environment imports
aws_environment = import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils.aws_environment")
device_facts = import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils.device_facts")
display = Display()

_PREFIX = "iotops_tunnel_"
_SURE_SECONDS = 10.0

# Why there is no tunnel that works, so that another is opened where that is allowed.
_WOULD_OPEN = ("no-tunnel", "tunnel-closed", "taken-over", "reused-elsewhere")

# With which ssh does something else than connect.
_QUESTIONS = ("-O", "-G")

# The status of sshpass where ssh asks whether to accept a host key; or the command's.
_SSHPASS_UNKNOWN_KEY = 6

# After these words in ansible-core's exception comes what ssh has written to stderr.
_NOT_SENT = "can be reached over ssh: "

# What HTTP allows in the first line of a request.
_HTTP_PATH = re.compile(r"/[!-~]*\Z")


class Connection(SshConnection):
    """ansible.builtin.ssh with another way to the device, and sentences for the ways in which that fails."""

    transport = "iotops.tunnel.ssh"

    # The hub that had the tunnel when this task began, and until when that need not be asked again.
    _hub_pid = None
    _sure_until = 0.0
    # Where the tunnel is: what client.locate and client.ensure say.
    _where = None
    _thing_name = None
    # Whether the user says where the control socket is.
    _has_control_path = False
    # Why the device must not be reached, whatever the hub says.
    _refusal = None
    _caller = None
    _opener = None
    # The host's variables as they are, and what templates them, until set_options.
    _unresolved = None

    def _resolve_option_variables(self, variables, templar):
        """Leave the collection's variables for set_options, which knows the delegate; ansible-core calls that next."""
        self._unresolved = variables, templar
        others = {name: value for name, value in variables.items() if not name.startswith(_PREFIX)}
        return super()._resolve_option_variables(others, templar)

    def _resolve_own_variables(self, task_keys):
        """Template the collection's variables; raise ValueError where a delegate's would be ambiguous.

        In a delegate's variables, ansible-core leaves C(inventory_hostname) the name of the host that the task is for:
        made of that, they would lead to the host's device, or into its account.
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
        """Read the options; the thing is the host, until the hub has said by which name ssh knows it in its account."""
        task_keys = task_keys or {}
        self._refusal = None
        try:
            var_options = {**(var_options or {}), **self._resolve_own_variables(task_keys)}
        except ValueError as error:
            self._refusal = str(error)
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        # With delegate_to, inventory_hostname still is the host that the task is for.
        delegate, host = task_keys.get("delegate_to"), self.get_option("host")
        self._thing_name = self.get_option("thing_name") or delegate or host
        self._where = None
        self._sure_until = 0.0
        self._has_control_path = bool(self.get_option("control_path"))
        try:
            device_facts.refuse_device_facts(self.get_option("facts"), delegate or host)
            self._caller = self._find_caller(var_options or {}, task_keys.get("environment"))
            self._opener = self._find_opener(var_options or {})
        except ValueError as error:
            self._refusal = self._refusal or str(error)
        self.set_option("host", self._thing_name)
        self.set_option("port", None)

    def _find_caller(self, variables, task_environment):
        """Who asks the hub: this process, as the host's variables, the task's environment, and ansible.cfg have it."""
        given, defaults = {}, {}
        for name in aws_environment.AWS_OPTIONS:
            layer = given if f"iotops_tunnel_{name}" in variables else defaults
            layer[name] = self.get_option(name)
        layers = task_environment if isinstance(task_environment, list) else [task_environment]
        environment = {name: value for layer in layers if isinstance(layer, dict) for name, value in layer.items()}
        return aws_environment.caller_for(given, defaults=defaults, task_environment=environment)

    def _find_opener(self, variables):
        """For whom tunnels are opened, and to what."""
        given, defaults = {}, {}
        for name in ("owner", "unregistered"):
            layer = given if f"{_PREFIX}{name}" in variables else defaults
            layer[name] = self.get_option(name)
        return aws_environment.opener_for(self._caller, given, defaults)

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
        """See that there is a tunnel that is up, as any task does, for wait_for_connection, which asks again."""
        self._ensure_tunnel(wait=float(connect_timeout))

    def reset(self):
        """End the connection that tasks share, if there is one."""
        try:
            self._locate()
        except AnsibleConnectionFailure as error:
            display.vvv(f"No connection to reset: {error}", host=self._thing_name)
            return
        super().reset()

    def _ensure_tunnel_of_task(self):
        """Ask once for the steps of a task that follow each other: it makes a folder, copies a file, and so on."""
        if time.monotonic() >= self._sure_until:
            self._ensure_tunnel()
            self._sure_until = time.monotonic() + _SURE_SECONDS

    def _ensure_tunnel(self, wait=None):
        """See to it that the hub has a tunnel that is up; fail before ssh runs if not."""
        thing = self._thing()
        services = [self._checked(name, "iotops_tunnel_services") for name in self.get_option("services")]
        policy = self.get_option("open")
        # What is wrong with it is known before a tunnel is paid for.
        check = self._health_check()
        is_unfit = check is not None and policy != "never" and check.service not in services
        local = self._ports()
        with self._unreachable(thing):
            try:
                row = client.ensure(
                    thing,
                    self._service(),
                    open_policy="never" if is_unfit else policy,
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
                if not is_unfit or error.code not in _WOULD_OPEN:
                    raise
                raise client.HubError(
                    f"there is no tunnel to {thing} that works, and a new one, with {', '.join(services)}, would be of "
                    f"no use to its health check: add {check.service} to iotops_tunnel_services, or set "
                    "iotops_tunnel_health_service",
                    code="bad-input",
                ) from None
        self._hub_pid = row.get("hub_pid")
        if row.get("taken_from"):
            display.warning(
                f"The tunnel of {thing} was {row['taken_from']}'s, whose connections to the device have ended; it is "
                f"{row['owner']}'s now."
            )
        if row.get("not_saved"):
            display.warning(f"The hub {row['not_saved']}.")
        self._is_at(row)

    def _locate(self):
        """Find out which account the thing is in, without opening anything."""
        thing = self._thing()
        with self._unreachable(thing):
            self._is_at(client.locate(thing, caller=self._caller))

    def _is_at(self, where):
        self._where = where
        self.set_option("host", where["ssh_name"])
        if not self._has_control_path:
            # Not of the host's name alone: things of one name in two accounts never share a connection.
            name = f"{where['account']}/{where['ssh_name']}"
            self.set_option("control_path", self._create_control_path(name, None, self.get_option("remote_user")))

    @contextlib.contextmanager
    def _unreachable(self, thing):
        """The device cannot be reached where the hub says why."""
        try:
            yield
        except client.HubError as error:
            # What is wrong with the hub itself is not about a thing, but this host cannot be reached for it.
            about = f"{thing} cannot be reached: " if error.code == "hub-failed" else ""
            raise AnsibleConnectionFailure(f"{about}{error}") from None

    def _host_key_alias(self):
        names = {"thing": self._thing(), "account": self._where["qualified_name"]}
        return names.get(self.get_option("host_key_alias"), self._where["host_key_name"])

    def _ports(self):
        try:
            return parse_ports(self.get_option("ports"))
        except ValueError as error:
            raise AnsibleConnectionFailure(f"{error} Set iotops_tunnel_ports for {self._thing()}.") from None

    def _health_check(self):
        """What to ask the device before a new SSH connection, or None."""
        if not self.get_option("health_check"):
            return None
        service = self._checked(self.get_option("health_service"), "iotops_tunnel_health_service")
        path = self.get_option("health_path")
        if not _HTTP_PATH.match(path):
            raise AnsibleConnectionFailure(
                f"{path!r} cannot be asked for by HTTP: it takes a path that begins with / and has no spaces, with all "
                f"but ASCII percent-encoded. Set iotops_tunnel_health_path for {self._thing()}."
            )
        try:
            statuses = tuple(int(status) for status in self.get_option("health_status"))
        except ValueError as error:
            raise AnsibleConnectionFailure(
                f"An HTTP status is a number ({error}). Set iotops_tunnel_health_status for {self._thing()}."
            ) from None
        return client.HealthCheck(service, path, statuses)

    def _thing(self):
        if self._refusal:
            raise AnsibleConnectionFailure(self._refusal)
        try:
            return valid_name("thing", self._thing_name)
        except ValueError as error:
            # Not chained: ansible-core 2.19 appends what the cause says.
            raise AnsibleConnectionFailure(f"{error} Set iotops_tunnel_thing for this host.") from None

    def _service(self):
        return self._checked(self.get_option("service"), "iotops_tunnel_service")

    def _checked(self, service, variable):
        try:
            return valid_name("service", service)
        except ValueError as error:
            raise AnsibleConnectionFailure(f"{error} Set {variable} for {self._thing()}.") from None

    def _add_args(self, b_command, b_args, explanation):
        """Add arguments, and say why with -vvv; the base class says it with -vvvvv only."""
        display.vvv(f"SSH: {explanation}: ({')('.join(to_text(arg) for arg in b_args)})", host=self.host)
        b_command += b_args

    def _build_command(self, binary, subsystem, *other_args):
        """Add the way to the device to what ansible.builtin.ssh runs; ssh takes the first value that it is given."""
        command = super()._build_command(binary, subsystem, *other_args)
        thing, service = self._thing(), self._service()
        way = client.connector_command(
            thing,
            service,
            account=self._where["account"],
            timeout=float(self.get_option("answer_timeout")),
            health_check=self._health_check(),
        )
        # ssh sends what its proxy command says to /dev/null if it is to stay as a control master.
        connector = shlex.join(["/bin/sh", "-c", 'exec "$@" 2>"$0"', self._complaint(), *way]).replace("%", "%%")

        firm: list[bytes] = []
        why = f"reach {service} of {thing} through the hub"
        if self.get_option("health_check"):
            why += f", if {self.get_option('health_service')} says that it is well"
        self._add_args(firm, _options(f"ProxyCommand={connector}"), why)
        self._add_args(firm, _options("ProxyUseFdpass=yes"), "get the connection itself, so that no byte is copied")
        alias = self._host_key_alias()
        self._add_args(firm, _options(f"HostKeyAlias={alias}"), "know the device's host key by its thing and account")
        defaults: list[bytes] = []
        alive = _options("ServerAliveInterval=15", "ServerAliveCountMax=3")
        self._add_args(defaults, alive, "notice a dead link within a minute, unless ssh's arguments say otherwise")

        if subsystem == "ssh" and not any(question in other_args[:2] for question in _QUESTIONS):
            # Of this one, ssh takes the last.
            log = [b"-E", to_bytes(self._log(), errors="surrogate_or_strict")]
            self._add_args(defaults, log, "keep what ssh says apart from what the device says")

        first = command.index(to_bytes(binary, errors="surrogate_or_strict")) + 1
        last = len(command) - len(other_args)
        return [*command[:first], *firm, *command[first:last], *defaults, *command[last:]]

    def _complaint(self):
        """Path of the file, in this run's private folder, to which the connector says why it has no stream."""
        return os.path.join(constants.DEFAULT_LOCAL_TMP, f"iotops-tunnel-{os.getpid()}-{id(self):x}")

    def _log(self):
        """Path of the file for what ssh itself says."""
        return f"{self._complaint()}.log"

    def _bare_run(self, cmd, in_data, sudoable=True, checkrc=True):
        """Run ssh, sftp or scp once, and say why if it could not reach the device."""
        # sftp and scp have no such file.
        is_ssh = to_bytes(self._log(), errors="surrogate_or_strict") in cmd
        try:
            with _plain_shell(), self._own_host_key_check():
                returncode, stdout, stderr = super()._bare_run(cmd, in_data, sudoable=sudoable, checkrc=checkrc)
        except AnsibleConnectionFailure as error:
            self._sure_until = 0.0
            ended, stderr = str(error).partition(_NOT_SENT)[1:]
            # Also raised where the device is reached, and a password is not asked for.
            self._explain("explain_ssh" if ended else "explain_killed", stderr)
            raise
        else:
            if returncode == _SSHPASS_UNKNOWN_KEY and cmd[0] == b"sshpass" and self.get_option("host_key_checking"):
                self._explain("explain_sshpass")
            # Of ssh, any other status is the command's.
            if returncode == 255 or (returncode and not is_ssh):
                self._sure_until = 0.0
                words = to_text(stderr, errors="surrogate_or_replace")
                self._explain("explain_ssh" if is_ssh else "explain_transfer", words)
            return returncode, stdout, to_bytes(_read(self._log()) or "") + stderr
        finally:
            for path in (self._complaint(), self._log()):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    @contextlib.contextmanager
    def _own_host_key_check(self):
        """Keep the base class from looking for a host key that is not accepted in what the device prints.

        With a password, it makes a failed task of that, whatever ssh's status is.
        """
        checking = self.get_option("host_key_checking")
        self.set_option("host_key_checking", False)
        try:
            yield
        finally:
            self.set_option("host_key_checking", checking)

    def _file_transport_command(self, in_path, out_path, sftp_action):
        """Transfer a file by each of the methods that are allowed, until one succeeds."""
        try:
            return super()._file_transport_command(in_path, out_path, sftp_action)
        except AnsibleConnectionFailure as error:
            # ansible-core says so of one method, whose status 255 it takes for ssh's.
            failed, words = str(error).partition("Failed to connect to the host via ")[1:]
            method, words = words.partition(": ")[::2]
            if not failed or method not in ("sftp", "scp") or not self._is_still_up():
                raise
            raise AnsibleError(
                f"{self._thing()} is reached, but {method} cannot transfer a file ({' '.join(words.split())}): set "
                "ansible_ssh_transfer_method to smart, which tries the other methods too, or to piped, which needs "
                "only dd on the device"
            ) from None

    def _explain(self, explain, stderr=""):
        """Raise what a function of ssh_failure makes of this run of ssh, if it says anything."""
        # Here, for few workers need it.
        ssh_failure = import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils.ssh_failure")
        run = ssh_failure.Run(_read(self._log()), stderr, _read(self._complaint()))
        if ssh_failure.lost_master(run):
            raise AnsibleControlPersistBrokenPipeError(run.log)
        way = ssh_failure.Way(self._thing(), self._service(), self._where["account"], self._host_key_alias())
        inquiry = ssh_failure.Inquiry(self._is_still_up, self._ssh_config, self._hub_pid)
        sentence = getattr(ssh_failure, explain)(run, way, inquiry)
        if sentence:
            raise AnsibleConnectionFailure(sentence) from None

    def _is_still_up(self):
        """Whether the ssh connection that tasks share is there."""
        return self._ask_ssh("-O", "check", self.host).returncode == 0

    def _ssh_config(self):
        """The options of ssh, by their names in small letters, or C(failure): why it cannot have any."""
        asked = self._ask_ssh("-G", self.host)
        if asked.returncode:
            # LogLevel may have kept it from saying why.
            asked = self._ask_ssh("-v", "-G", self.host)
            return {"failure": to_text(asked.stderr, errors="surrogate_or_replace")}
        return dict(line.partition(" ")[::2] for line in to_text(asked.stdout).splitlines())

    def _ask_ssh(self, *question):
        executable = to_bytes(self.get_option("ssh_executable"))
        command = self._build_command(executable, "ssh", *question)
        # Without sshpass before it: this asks for no password.
        command = command[command.index(executable) :]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603  no shell


def _read(path):
    """What is in a file, or None where it is not there."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _plain_shell():
    """Have ssh run its proxy command by /bin/sh.

    It takes the user's shell, and gives it a socket; by which bash thinks that rshd has started it, and reads ~/.bashrc
    where no other bash is above it, as under cron: that takes its time, and what it prints ssh takes for the stream.
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
    """Refuse a task's own variable that differs between delegate and host. Not with its values, which may be secret."""
    for name in names:
        if found.get(name) != as_host.get(name):
            raise ValueError(
                f"delegate_to: {delegate} is ambiguous: the task's own {name} is made of inventory_hostname, and "
                f"differs between the host that the task is for and {delegate}. Set {name} for {delegate} in the "
                "inventory, or write its value out in the task."
            )


def _options(*options):
    return [part for option in options for part in (b"-o", to_bytes(option))]
