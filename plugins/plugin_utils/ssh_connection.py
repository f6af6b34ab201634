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
from ansible.plugins.connection.ssh import Connection as SshConnection
from ansible.utils.display import Display
from ansible_collections.iotops.tunnel.plugins.module_utils.names import valid_name
from ansible_collections.iotops.tunnel.plugins.module_utils.ports import parse_ports
from ansible_collections.iotops.tunnel.plugins.plugin_utils.worker import import_module

client = import_module("ansible_collections.iotops.tunnel.tunnelproxy.hub.client")
display = Display()

_SURE_SECONDS = 10.0

# What HTTP allows in the first line of a request.
_HTTP_PATH = re.compile(r"/[!-~]*\Z")


class Connection(SshConnection):
    """ansible.builtin.ssh with another way to the device, and sentences for the ways in which that fails."""

    transport = "iotops.tunnel.ssh"

    # The hub that had the tunnel when this task began, and until when that need not be asked again.
    _hub_pid = None
    _sure_until = 0.0

    def set_options(self, task_keys=None, var_options=None, direct=None):
        """Read the options, then make the thing the host: it alone names the control socket and the host key."""
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        # With delegate_to, inventory_hostname still is the host that the task is for.
        delegate = (task_keys or {}).get("delegate_to")
        self.set_option("host", self.get_option("thing_name") or delegate or self.get_option("host"))
        self.set_option("port", None)

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
        """See whether there is a tunnel that is up, for wait_for_connection, which opens none: it may ask for hours."""
        self._ensure_tunnel(open_policy="never")

    def _ensure_tunnel_of_task(self):
        """Ask once for the steps of a task that follow each other: it makes a folder, copies a file, and so on."""
        if time.monotonic() >= self._sure_until:
            self._ensure_tunnel()
            self._sure_until = time.monotonic() + _SURE_SECONDS

    def _ensure_tunnel(self, open_policy=None):
        """See to it that the hub has a tunnel that is up; fail before ssh runs if not."""
        thing = self._thing()
        try:
            row = client.ensure(
                thing,
                self._service(),
                open_policy=open_policy or self.get_option("open"),
                services=[self._checked(name, "iotops_tunnel_services") for name in self.get_option("services")],
                ports=self._ports(),
                wait=float(self.get_option("wait_for_destination")),
                timeout=float(self.get_option("timeout")),
            )
        except client.HubError as error:
            # What is wrong with the hub itself is not about a thing, but this host cannot be reached for it.
            about = f"{thing} cannot be reached: " if error.code == "hub-failed" else ""
            raise AnsibleConnectionFailure(f"{about}{error}") from None
        self._hub_pid = row.get("hub_pid")

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
        try:
            return valid_name("thing", self.get_option("host"))
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
        self._add_args(firm, _options(f"HostKeyAlias={thing}"), "know the device's host key by its thing name")
        defaults: list[bytes] = []
        alive = _options("ServerAliveInterval=15", "ServerAliveCountMax=3")
        self._add_args(defaults, alive, "notice a dead link within a minute, unless ssh's arguments say otherwise")

        first = command.index(to_bytes(binary, errors="surrogate_or_strict")) + 1
        last = len(command) - len(other_args)
        return [*command[:first], *firm, *command[first:last], *defaults, *command[last:]]

    def _complaint(self):
        """Path of the file, in this run's private folder, to which the connector says why it has no stream."""
        return os.path.join(constants.DEFAULT_LOCAL_TMP, f"iotops-tunnel-{os.getpid()}-{id(self):x}")

    def _bare_run(self, cmd, in_data, sudoable=True, checkrc=True):
        """Run ssh, sftp or scp once, and say why if it could not reach the device."""
        try:
            with _plain_shell():
                returncode, stdout, stderr = super()._bare_run(cmd, in_data, sudoable=sudoable, checkrc=checkrc)
        except AnsibleConnectionFailure as error:
            self._sure_until = 0.0
            # Also raised where the device is reached, and a password is not asked for.
            self._explain(str(error), ssh_failed="Data could not be sent" in str(error))
            raise
        except AnsibleError as error:
            # With a password set, the base class makes a failed task of a host key that is not accepted.
            if "Host Key checking is enabled" in str(error):
                self._explain("Host key verification failed.")
            raise
        else:
            # A command on the device may fail with the same words (git does, by an ssh of its own), but not with 255.
            # sftp and scp run no command of the user's.
            runs_command = to_bytes(self.get_option("ssh_executable")) in cmd
            if returncode == 255 or (returncode and not runs_command):
                self._sure_until = 0.0
                words = to_text(stderr, errors="surrogate_or_replace")
                self._explain(words, ssh_failed=returncode == 255)
            return returncode, stdout, stderr
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._complaint())

    def _explain(self, stderr, *, ssh_failed=False):
        # Here, for few workers need it.
        ssh_failure = import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils.ssh_failure")
        with (
            contextlib.suppress(FileNotFoundError),
            open(self._complaint(), encoding="utf-8", errors="replace") as file,
        ):
            stderr += "\n" + file.read()
        sentence = ssh_failure.explain_ssh_failure(stderr, self._thing(), self._service())
        if sentence is None and ssh_failed:
            sentence = ssh_failure.explain_break(
                stderr, self._thing(), self._service(), hub_pid=self._hub_pid, still_up=self._is_still_up
            )
        if sentence:
            raise AnsibleConnectionFailure(sentence) from None

    def _is_still_up(self):
        """Whether the ssh connection that tasks share is there."""
        executable = to_bytes(self.get_option("ssh_executable"))
        check = self._build_command(executable, "ssh", "-O", "check", self.host)
        # Without sshpass before it: this asks for no password.
        check = check[check.index(executable) :]
        done = subprocess.run(check, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603  as above
        return done.returncode == 0


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


def _options(*options):
    return [part for option in options for part in (b"-o", to_bytes(option))]
