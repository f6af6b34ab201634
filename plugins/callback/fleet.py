# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Callback plugin iotops.tunnel.fleet: the progress of a play over many devices, failures by reason, slowest hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet
type: stdout
short_description: Progress of a play over a fleet, failures by reason, and the slowest hosts
version_added: 0.1.0
author:
  - The iotops.tunnel authors (@iotops)
description:
  - Prints two lines for each task, and one line with the reason for each host that fails or is unreachable. At the end,
    it groups failed and unreachable hosts by reason, and lists the slowest hosts.
  - On a terminal, a status display at the bottom shows the progress. It has the number of hosts that are done, the
    number of tunnels that are being opened, and the hosts that have been working longest. It is redrawn twice a second.
  - Elsewhere, such as in the log of a CI job, it prints the status as a plain line if nothing else was printed for a
    while; see O(interval).
  - With C(-v) and higher, it also prints everything that P(ansible.builtin.default#callback) prints. Diffs and messages
    of M(ansible.builtin.debug) are always printed, and results with C(no_log) never.
  - This is a callback of type C(stdout), not an addition to another one, because only one plugin can control the
    screen. The output of a callback that does not know of the status display would be mixed up with it.
options:
  live:
    description:
      - Whether to show the status display on a terminal. It is never shown on a dumb terminal, nor if the output does
        not go to a terminal.
      - Turn it off if a playbook prompts in a way that Ansible does not know of, such as with the task debugger.
    type: bool
    default: true
    env:
      - name: IOTOPS_TUNNEL_FLEET_LIVE
    ini:
      - section: callback_iotops_tunnel_fleet
        key: live
  interval:
    description:
      - Seconds without output after which the status is printed as a plain line, if there is no status display.
    type: float
    default: 15
    env:
      - name: IOTOPS_TUNNEL_FLEET_INTERVAL
    ini:
      - section: callback_iotops_tunnel_fleet
        key: interval
  slowest:
    description:
      - How many of the slowest hosts to list. V(0) lists none.
    type: int
    default: 3
    env:
      - name: IOTOPS_TUNNEL_FLEET_SLOWEST
    ini:
      - section: callback_iotops_tunnel_fleet
        key: slowest
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - Set as stdout callback in the configuration
seealso:
  - plugin: ansible.builtin.default
    plugin_type: callback
"""

EXAMPLES = r"""
# In ansible.cfg:
# [defaults]
# stdout_callback = iotops.tunnel.fleet
#
# Or for one run, in a shell:
# ANSIBLE_STDOUT_CALLBACK=iotops.tunnel.fleet ansible-playbook -i inventory.ini iotops.tunnel.ping
"""

import contextlib
import os
import sys
import threading
import time
from typing import Any

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as DefaultCallback
from ansible.plugins.loader import connection_loader
from ansible.template import Templar
from ansible.utils.color import stringc
from ansible_collections.iotops.tunnel.plugins.plugin_utils._fleet.failures import Failure, grouped, one_line, reason_of
from ansible_collections.iotops.tunnel.plugins.plugin_utils._fleet.live_display import LiveDisplay
from ansible_collections.iotops.tunnel.plugins.plugin_utils._fleet.progress import (
    FleetProgress,
    longest,
    slowest,
    spell_outcomes,
    spell_seconds,
)
from ansible_collections.iotops.tunnel.tunnelproxy.hub import client

REDRAW_SECONDS = 0.5
ASK_HUB_SECONDS = 1.0
MOST_TASKS = 3
MOST_HOSTS = 8
"""Hosts that are listed in a group; of the rest, only the number is printed."""

_FREE = ("free", "host_pinned", "ansible.builtin.free", "ansible.builtin.host_pinned")
_ASKING = ("pause", "ansible.builtin.pause", "ansible.legacy.pause")
_TRANSPORT = "iotops.tunnel.ssh"


class CallbackModule(DefaultCallback):
    """Replaces the output of the default callback, which is also printed with C(-v)."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "iotops.tunnel.fleet"

    def __init__(self):
        super().__init__()
        # Workers are forked from this process later, and so have it loaded.
        connection_loader.get(_TRANSPORT, class_only=True)
        self._lock = threading.RLock()
        self._progress = FleetProgress()
        self._began = time.monotonic()
        self._block = None
        self._watcher = None
        self._ended = threading.Event()
        self._quiet_since = time.monotonic()
        self._asking = False
        self._current = None
        self._play: Any = None
        self._item_failures = {}
        self._things = {}
        self._hub_rows = {}
        self._opening = set()

    # The screen ----------------------------------------------------------------------------------------------------

    def set_options(self, task_keys=None, var_options=None, direct=None):
        """Read the options, and decide whether there is a status display."""
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        if self._block is None and self.get_option("live") and _is_terminal():
            self._block = LiveDisplay(sys.stdout.fileno(), sys.stdout.flush)
            self._print_above_lines(self._block)

    def _print_above_lines(self, block):
        """Hide the status display while anything in Ansible prints."""
        display = self._display.display

        def display_above_lines(msg, *args, **kwargs):
            with block.suspended():
                display(msg, *args, **kwargs)
                if block.mine:
                    sys.stdout.flush()

        self._display.display = display_above_lines

    def _restore_display(self):
        """Restore Display's own method, which the instance's attribute hides."""
        with contextlib.suppress(AttributeError):  # nothing was redrawn
            del self._display.display

    def _say(self, text, color=None):
        self._quiet_since = time.monotonic()
        self._display.display(text, color=None if os.environ.get("NO_COLOR") else color)
        if self._block is None:
            # Whoever follows a log must not wait for a full buffer.
            sys.stdout.flush()

    def _watch(self):
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._keep_status_current, name="iotops-tunnel-fleet", daemon=True)
            self._watcher.start()

    def _keep_status_current(self):
        """Run in a thread until the end: redraw the status display, or print the status from time to time."""
        asked = 0.0
        while not self._ended.wait(REDRAW_SECONDS):
            now = time.monotonic()
            due = self._block is not None or now - self._quiet_since >= self.get_option("interval")
            if not due or self._asking or not self._progress.running():
                continue
            if now - asked >= ASK_HUB_SECONDS:
                asked = now
                self._ask_hub()
            with self._lock:
                if self._asking or self._ended.is_set():
                    continue
                lines = self._live_lines(now)
                if self._block is not None:
                    self._block.draw(lines)
                elif lines:
                    self._say("  " + "; ".join(line.strip() for line in lines))

    def _redraw(self):
        if self._block is not None:
            self._block.draw([] if self._asking or self._ended.is_set() else self._live_lines(time.monotonic()))

    # The status ----------------------------------------------------------------------------------------------------

    def _live_lines(self, now):
        progress = self._progress
        active = progress.active()[:MOST_TASKS]
        if not active:
            return []
        lines = []
        for task in active:
            total = f"/{task.hosts}" if task.hosts is not None else ""
            where = f"TASK [{task.name}] " if self._is_free() else ""
            told = [f"{where}{task.done}{total} done", f"{len(task.running)} running"]
            told += [
                _colored(f"{task.outcomes[outcome]} {outcome}", color)
                for outcome, color in (
                    ("failed", constants.COLOR_ERROR),
                    ("unreachable", constants.COLOR_UNREACHABLE),
                    ("ignored", constants.COLOR_WARN),
                )
                if task.outcomes[outcome]
            ]
            lines.append("  " + ", ".join([*told, spell_seconds(now - task.began)]))
        tunnels = self._tunnel_line()
        if tunnels:
            lines.append("  " + tunnels)
        slow = longest({host: now - since for host, since in progress.running().items()}, self.get_option("slowest"))
        if slow:
            lines.append("  longest: " + ", ".join(f"{host} {spell_seconds(seconds)}" for host, seconds in slow))
        return lines

    def _tunnel_line(self):
        """The number of this play's open tunnels, while some are being opened or are disconnected."""
        things = {self._things[host] for host in self._progress.left() if self._things.get(host)}
        opening = things & self._opening
        lost = {thing for thing in things - opening if self._hub_rows.get(thing, "connected") != "connected"}
        if not opening and not lost:
            return ""
        open_now = [thing for thing in things - opening if self._hub_rows.get(thing) == "connected"]
        # Hosts without a task so far count as devices behind tunnels.
        total = sum(1 for host in self._progress.left() if self._things.get(host, "unknown"))
        told = [f"opening tunnels {len(open_now)}/{total}", f"{len(opening)} in progress"] if opening else []
        told += [_colored(f"disconnected tunnels: {len(lost)}", constants.COLOR_WARN)] if lost else []
        return ", ".join(told)

    def _ask_hub(self):
        """Ask the hub which tunnels are connected, and which it is opening. Without a hub, there are none."""
        try:
            status = client.status() or {}
        except client.HubError:
            status = {}
        rows = {row["thing"]: row["state"] for row in status.get("tunnels", ())}
        with self._lock:
            self._hub_rows, self._opening = rows, set(status.get("opening", ()))

    def _learn_thing(self, host, task):
        """Find out the thing of a host, only once, because computing all variables of a host takes a while."""
        name = host.get_name()
        if name in self._things:
            return
        self._things[name] = ""
        with contextlib.suppress(Exception):  # progress is not worth a failed play
            manager = self._play.get_variable_manager()
            variables = manager.get_vars(play=self._play, host=host, task=task, include_hostvars=False)
            templar = Templar(loader=self._play.get_loader(), variables=variables)
            connection = templar.template(variables.get("ansible_connection", task.connection))
            if connection == _TRANSPORT:
                self._things[name] = str(templar.template(variables.get("iotops_tunnel_thing") or name))

    # Plays and tasks -----------------------------------------------------------------------------------------------

    def v2_playbook_on_start(self, playbook):
        """Print nothing before the first play."""
        if self._display.verbosity > 1:
            super().v2_playbook_on_start(playbook)

    def v2_playbook_on_vars_prompt(self, *args, **kwargs):
        """Hide the status display during a prompt."""
        with self._lock:
            self._asking = True
            self._redraw()

    def v2_playbook_on_play_start(self, play):
        """A play begins, or, with C(serial), a batch of it."""
        with self._lock:
            self._end_tasks()
            self._asking = False
            again = self._play is not None and self._play._uuid == play._uuid
            self._play = play
            # The play's variables may change the thing of a host.
            self._things.clear()
            self._last_task_banner = None
            hosts = play.get_variable_manager().get_vars(play=play, include_hostvars=False)["ansible_play_batch"]
            self._progress.play(hosts)
            name = one_line(play.get_name())
            batch = "next batch, " if again else ""
            mode = " [CHECK MODE]" if play.check_mode and self.get_option("check_mode_markers") else ""
            self._say(f"\nPLAY [{name}]{mode} {batch}{len(hosts)} host{'' if len(hosts) == 1 else 's'}")
            self._watch()

    def v2_playbook_on_task_start(self, task, is_conditional):
        """A task begins; with the strategy C(free), this is called once for each host."""
        self._begin_task(task, "TASK")

    def v2_playbook_on_handler_task_start(self, task):
        """A handler begins."""
        self._begin_task(task, "HANDLER")

    def _begin_task(self, task, prefix):
        with self._lock:
            self._task_type_cache[task._uuid] = prefix
            self._asking = task.action in _ASKING or bool(getattr(task, "debugger", None))
            if not self._is_free():
                self._end_tasks()
                self._last_task_name = None
                self._current = task._uuid
                # How many hosts run a handler, or are in a rescue, is not known here.
                hosts = len(self._progress.left()) if prefix == "TASK" and not task.run_once else None
                self._progress.task(task._uuid, one_line(task.get_name()), time.monotonic(), hosts)
                self._print_task_banner(task)
            self._redraw()

    def _print_task_banner(self, task):
        """Print the name of the task, as the default callback does before its first result."""
        prefix = self._task_type_cache.get(task._uuid, "TASK")
        mode = " [CHECK MODE]" if task.check_mode and self.get_option("check_mode_markers") else ""
        self._say(f"\n{prefix} [{one_line(task.get_name())}]{mode}")
        if self._display.verbosity >= 2:
            self._print_task_path(task)
        self._last_task_banner = task._uuid

    def _end_tasks(self):
        """Print the outcome of the previous task or, with the strategy C(free), of all tasks of the play."""
        for uuid, task in list(self._progress.tasks.items()):
            del self._progress.tasks[uuid]
            if not task.done:
                continue
            slow = slowest(task.took, self.get_option("slowest"))
            text = f"{spell_outcomes(task.outcomes)}, {spell_seconds(time.monotonic() - task.began)}"
            if slow:
                text += "; slowest: " + ", ".join(f"{host} {spell_seconds(seconds)}" for host, seconds in slow)
            name = f"TASK [{task.name}] " if self._is_free() else ""
            bad = task.outcomes["failed"] or task.outcomes["unreachable"]
            good = constants.COLOR_CHANGED if task.outcomes["changed"] else constants.COLOR_OK
            self._say(f"  {name}{text}", constants.COLOR_ERROR if bad else good)

    def v2_playbook_on_no_hosts_matched(self):
        """A play has no hosts."""
        self._say("  no hosts match", constants.COLOR_SKIP)

    def v2_playbook_on_no_hosts_remaining(self):
        """All hosts have failed."""
        with self._lock:
            self._end_tasks()
        self._say("\nNo hosts are left.", constants.COLOR_ERROR)

    def v2_playbook_on_include(self, included_file):
        """A file is included, which is printed only with C(-v)."""
        if self._display.verbosity:
            super().v2_playbook_on_include(included_file)

    # Hosts ---------------------------------------------------------------------------------------------------------

    def v2_runner_on_start(self, host, task):
        """A host begins a task."""
        with self._lock:
            self._learn_thing(host, task)
            self._progress.begin(task._uuid, one_line(task.get_name()), host.get_name(), time.monotonic())
        super().v2_runner_on_start(host, task)

    def v2_runner_on_ok(self, result):
        """A host has completed a task."""
        self._end(result, "changed" if _data(result).get("changed") else "ok")
        if self._run_is_verbose(result):
            super().v2_runner_on_ok(result)
        else:
            self._handle_warnings(_data(result))

    def v2_runner_on_skipped(self, result):
        """A host had nothing to do."""
        self._end(result, "skipped")
        if self._run_is_verbose(result):
            super().v2_runner_on_skipped(result)
        else:
            self._handle_warnings(_data(result))

    def v2_runner_on_failed(self, result, ignore_errors=False):
        """A host has failed."""
        self._fail(result, "ignored" if ignore_errors else "failed")
        if self._display.verbosity:
            super().v2_runner_on_failed(result, ignore_errors=ignore_errors)
        else:
            self._handle_warnings(_data(result))

    def v2_runner_on_unreachable(self, result):
        """A host could not be reached."""
        ignored = bool(getattr(_task(result), "ignore_unreachable", False))
        self._fail(result, "ignored" if ignored else "unreachable")
        if self._display.verbosity:
            super().v2_runner_on_unreachable(result)

    def v2_runner_item_on_ok(self, result):
        """A loop item is done."""
        if self._run_is_verbose(result):
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result):
        """A loop item was skipped."""
        if self._run_is_verbose(result):
            super().v2_runner_item_on_skipped(result)

    def v2_runner_item_on_failed(self, result):
        """A loop item has failed. The line of the host will give the reason."""
        label = one_line(self._get_item_label(_data(result)))
        with self._lock:
            key = (_host(result).get_name(), _task(result)._uuid)
            self._item_failures.setdefault(key, []).append(f"item {label}: {reason_of(_data(result))}")
        if self._display.verbosity:
            super().v2_runner_item_on_failed(result)

    def v2_runner_retry(self, result):
        """A host retries a task."""
        if self._display.verbosity:
            super().v2_runner_retry(result)

    def v2_runner_on_async_poll(self, result):
        """An asynchronous job is still running."""
        if self._display.verbosity:
            super().v2_runner_on_async_poll(result)

    def v2_runner_on_async_ok(self, result):
        """An asynchronous job has finished."""
        if self._display.verbosity:
            super().v2_runner_on_async_ok(result)

    def _end(self, result, outcome):
        task, host = _task(result), _host(result).get_name()
        with self._lock:
            self._item_failures.pop((host, task._uuid), None)
            self._progress.end(task._uuid, one_line(task.get_name()), host, outcome, time.monotonic())
            if task.action in _ASKING:
                self._asking = False
            self._redraw()

    def _fail(self, result, outcome):
        task, host = _task(result), _host(result).get_name()
        name = one_line(task.get_name())
        with self._lock:
            items = self._item_failures.pop((host, task._uuid), [])
            more = f" (and {len(items) - 1} more items)" if len(items) > 1 else ""
            reason = f"{items[0]}{more}" if items else reason_of(_data(result))
            failure = Failure(host, self._things.get(host) or host, name, reason)
            if outcome == "failed":
                self._progress.failed[host] = failure
            elif outcome == "unreachable":
                self._progress.unreachable[host] = failure
            where = f"{name}: " if self._is_free() else ""
            color = {
                "failed": constants.COLOR_ERROR,
                "unreachable": constants.COLOR_UNREACHABLE,
                "ignored": constants.COLOR_WARN,
            }
            self._say(f"  {outcome}: [{self.host_label(result)}] {where}{reason}", color[outcome])
            self._end(result, outcome)

    def _is_free(self):
        return self._play is not None and self._play.strategy in _FREE

    # The end -------------------------------------------------------------------------------------------------------

    def v2_playbook_on_stats(self, stats):
        """Print the summary: the number of hosts that succeeded, failures by reason, and the slowest hosts."""
        with self._lock:
            self._ended.set()
            self._redraw()
            self._end_tasks()
        if self._display.verbosity:
            super().v2_playbook_on_stats(stats)
        self._summarise(stats)
        self._restore_display()

    def _summarise(self, stats):
        hosts = {host: stats.summarize(host) for host in sorted(self._progress.hosts)}
        unreachable = [host for host, sums in hosts.items() if sums["unreachable"]]
        failed = [host for host, sums in hosts.items() if sums["failures"] and host not in unreachable]
        well = [host for host in hosts if host not in unreachable and host not in failed]
        changed = sum(1 for host in well if hosts[host]["changed"])
        took = spell_seconds(time.monotonic() - self._began)
        self._say(f"\nFLEET {len(hosts)} host{'' if len(hosts) == 1 else 's'}, {took}")
        self._say(f"  ok: {len(well)}" + (f" (changed: {changed})" if changed else ""), constants.COLOR_OK)
        for word, those, failures, color in (
            ("failed", failed, self._progress.failed, constants.COLOR_ERROR),
            ("unreachable", unreachable, self._progress.unreachable, constants.COLOR_UNREACHABLE),
        ):
            self._say(f"  {word}: {len(those)}", color if those else None)
            for group in grouped(failures[host] for host in those if host in failures):
                self._say(f"    {len(group.hosts)}: {group.reason}", color)
                self._say(f"       {_names(group.hosts)}")
        spent = self._progress.hosts
        slow = slowest({host: time.total for host, time in spent.items()}, self.get_option("slowest"))
        if slow:
            told = (
                f"{host} {spell_seconds(total)} ({spent[host].longest_task} {spell_seconds(spent[host].longest)})"
                for host, total in slow
            )
            self._say("  slowest: " + ", ".join(told))


# ansible-core 2.19 has host, task and result. 2.18 has only the underscored names, which 2.23 will remove.
def _host(result):
    return result.host if hasattr(result, "host") else result._host


def _task(result):
    return result.task if hasattr(result, "task") else result._task


def _data(result):
    return result.result if hasattr(result, "result") else result._result


def _names(hosts):
    more = f" and {len(hosts) - MOST_HOSTS} more" if len(hosts) > MOST_HOSTS else ""
    return ", ".join(hosts[:MOST_HOSTS]) + more


def _colored(text, color):
    return text if os.environ.get("NO_COLOR") else stringc(text, color)


def _is_terminal():
    try:
        return os.isatty(sys.stdout.fileno()) and os.environ.get("TERM", "dumb") != "dumb"
    except (OSError, ValueError, AttributeError):
        return False
