# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback iotops.tunnel.fleet, on a terminal and in a log, with real tunnels."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.fleet import AgentFleet
from peers.terminal import Terminal

PLAY = r"""
- name: Überprüfe die Flotte
  hosts: devices
  gather_facts: false
  tasks:
    - name: Warm up
      ansible.builtin.raw: sleep 2
      changed_when: false
      notify: Tidy
    - name: Loop
      ansible.builtin.raw: >-
        test {{ item }} != {{ inventory_hostname }} || { printf 'b\303\266se \033[31mX\n' >&2; exit 3; }
      loop: [pump-2, "日本"]
      ignore_errors: true
    - name: Secret
      ansible.builtin.raw: "echo geheim; exit 4"
      no_log: true
      ignore_errors: true
    - name: Say
      ansible.builtin.debug:
        msg: "I am {{ inventory_hostname }}"
      when: inventory_hostname == 'pump-1'
    - name: Try
      block:
        - name: Break
          ansible.builtin.fail:
            msg: broken
      rescue:
        - name: Mend
          ansible.builtin.debug:
            msg: mended
            verbosity: 1
    - name: Mount
      ansible.builtin.fail:
        msg: "cannot mount the card of {{ inventory_hostname }}"
      when: inventory_hostname in ('pump-2', 'pump-3')
      changed_when: true
  handlers:
    - name: Tidy
      ansible.builtin.debug:
        msg: tidy
        verbosity: 1
"""

FREE = """
- hosts: devices
  strategy: free
  gather_facts: false
  tasks:
    - name: First
      ansible.builtin.raw: "test {{ inventory_hostname }} != pump-2"
    - name: Second
      ansible.builtin.raw: "true"
- hosts: pump-1
  gather_facts: false
  tasks:
    - name: Ask
      ansible.builtin.pause:
        seconds: 2
"""

# Do not wait long for the device that never connects.
WAIT = {"iotops_tunnel_wait": "{{ 3 if inventory_hostname == 'gone' else 30 }}"}


@pytest.fixture(scope="module")
def fleet() -> Iterator[AgentFleet]:
    with AgentFleet("pump-1", "pump-2", "pump-3", absent=("gone",), variables=WAIT) as running:
        yield running


def run(fleet: AgentFleet, tmp_path: Path, play: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "play.yml").write_text(play)
    settings = {"ANSIBLE_STDOUT_CALLBACK": "iotops.tunnel.fleet", **env}
    return fleet.controller.playbook(tmp_path / "play.yml", *options, **settings)


def terminal(
    fleet: AgentFleet, tmp_path: Path, play: str, *options: str, columns: int = 100, rows: int = 24, **env: str
) -> Terminal:
    (tmp_path / "play.yml").write_text(play)
    environment = {**fleet.controller.environment, "ANSIBLE_STDOUT_CALLBACK": "iotops.tunnel.fleet"}
    environment.update({"TERM": "xterm-256color", "ANSIBLE_NOCOLOR": "0", **env})
    return Terminal(
        ["ansible-playbook", str(tmp_path / "play.yml"), *options], environment, tmp_path, columns=columns, rows=rows
    )


def test_a_log_gets_plain_lines_during_the_run_and_groups_at_the_end(fleet: AgentFleet, tmp_path: Path) -> None:
    done = run(fleet, tmp_path, PLAY, IOTOPS_TUNNEL_FLEET_INTERVAL="1")
    out = done.stdout

    assert done.returncode == 4, out + done.stderr
    assert "\x1b" not in out
    assert "PLAY [Überprüfe die Flotte] 4 hosts" in out
    assert re.search(r"^  \d/4 done, \d running, \d+ s; opening tunnels [0-3]/4, [1-4] in progress", out, re.MULTILINE)
    assert re.search(r"^  unreachable: \[gone\] the device gone did not connect to its tunnel", out, re.MULTILINE)
    assert "  ignored: [pump-2] item pump-2: exit status 3: böse [31mX\n" in out
    assert out.count("the reason is hidden by no_log") == 3
    assert "geheim" not in out + done.stderr
    assert '"msg": "I am pump-1"' in out
    assert "mended" not in out
    summary = out[out.index("FLEET 4 hosts") :]
    assert "  ok: 1 (changed: 1)\n" in summary
    assert "    2: cannot mount the card of HOST (at: Mount)\n       pump-2, pump-3\n" in summary
    assert "  unreachable: 1\n    1: the device gone did not connect" in summary
    assert "broken" not in summary
    assert "hub_failed" not in out
    assert "Traceback" not in out + done.stderr
    assert "[WARNING]" not in done.stderr


def test_a_terminal_shows_the_progress_and_keeps_only_results(fleet: AgentFleet, tmp_path: Path) -> None:
    fleet.controller.playbook("iotops.tunnel.close")
    screen = terminal(fleet, tmp_path, PLAY, columns=90, rows=60)
    assert screen.run_until(lambda lines: any("opening tunnels" in line for line in lines))
    assert screen.run_until(lambda lines: any(line.startswith("  longest: ") for line in lines))
    screen.resize(48, 60)
    assert screen.run_until(lambda lines: "TASK [Secret]" in lines)
    assert screen.finish() == 4

    everything = "\n".join(screen.all_lines())
    assert not re.search(r"\d running|longest:|in progress", everything)
    for task in ("Warm up", "Loop", "Secret", "Say", "Break", "Mend", "Mount"):
        assert everything.count(f"\nTASK [{task}]") == 1
    assert "\x1b[0;31m" in screen.raw.decode()
    assert "geheim" not in screen.raw.decode()


def test_lines_fit_a_narrow_terminal_and_leave_room_for_a_prompt(fleet: AgentFleet, tmp_path: Path) -> None:
    screen = terminal(fleet, tmp_path, FREE, "--limit", "!gone", columns=30, NO_COLOR="1")
    assert screen.finish() == 2

    asked = [lines for lines in screen.seen if any(line.startswith("Pausing for 2") for line in lines)]
    assert asked
    assert not any("running" in line for lines in asked for line in lines)
    drawn = [line for lines in screen.seen for line in lines if "running" in line or line.endswith("…")]
    assert drawn
    assert all(len(line) < 30 for line in drawn)
    assert not re.search(rb"\x1b\[[0-9;]*m", screen.raw)
    everything = "\n".join(screen.all_lines())
    assert "failed: [pump-2] First: exit" in everything


WRITE = """
- hosts: pump-1
  gather_facts: false
  connection: local
  tasks:
    - name: Write
      ansible.builtin.copy:
        content: "new\\n"
        dest: "{{ playbook_dir }}/{{ inventory_hostname }}.txt"
        mode: "0600"
"""
LOCAL = ("-e", "ansible_connection=local")


def test_check_mode_is_marked_and_diffs_are_printed(fleet: AgentFleet, tmp_path: Path) -> None:
    done = run(fleet, tmp_path, WRITE, "--check", "--diff", *LOCAL, ANSIBLE_CHECK_MODE_MARKERS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TASK [Write] [CHECK MODE]" in done.stdout
    assert "+new" in done.stdout
    assert "  1 changed, " in done.stdout
    assert "PLAY RECAP" not in done.stdout
    assert "changed: [pump-1]" not in done.stdout


def test_verbosity_prints_what_the_default_callback_prints(fleet: AgentFleet, tmp_path: Path) -> None:
    done = run(fleet, tmp_path, WRITE, "-v", *LOCAL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed: [pump-1] => {" in done.stdout
    assert "PLAY RECAP" in done.stdout
