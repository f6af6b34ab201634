#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of iotops.tunnel.check_facts, which is an action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: check_facts
short_description: Fail if a device has set variables that no device may set
version_added: 0.1.0
description:
  - The result of any module may contain facts. Ansible turns them into variables that take precedence over those of the
    inventory and the defaults of roles. A compromised device could use this to redirect its remaining tasks to another
    device, or to choose a path on the controller.
  - Fails for a host whose facts contain an option of this collection, which begins with C(iotops_tunnel_), or a
    variable of Ansible itself, such as C(inventory_hostname) or C(playbook_dir).
  - The connection plugin P(iotops.tunnel.ssh#connection), the lookup plugin and the other modules do this check
    themselves. Use this module in plays that use variables for tasks on the controller, with C(delegate_to) or
    C(connection=local). The collection's roles and playbooks do so.
  - The check does not know the other variables of a play, which a fact could override. To prevent facts from becoming
    variables, set C(inject_facts_as_vars=false) in the section C([defaults]) of C(ansible.cfg).
  - Runs on the controller.
author:
  - The iotops.tunnel authors (@iotops)
extends_documentation_fragment:
  - iotops.tunnel.attributes
  - iotops.tunnel.attributes.action
attributes:
  check_mode:
    support: full
    details: Read-only.
  delegation:
    support: none
    details: The facts are those of the host that the task is for, not of the delegate.
  diff_mode:
    support: N/A
"""

EXAMPLES = r"""
- name: Check that the device has not set the variables that are used below
  iotops.tunnel.check_facts:

- name: Save the device's log
  ansible.builtin.copy:
    content: "{{ log.stdout }}"
    dest: "{{ playbook_dir }}/logs/{{ inventory_hostname }}"
    mode: "0600"
  delegate_to: localhost
"""

RETURN = r"""
"""
