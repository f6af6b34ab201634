#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of iotops.tunnel.check_facts, which is an action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: check_facts
short_description: Fail where a device has set variables that no device may set
version_added: 0.1.0
description:
  - Every answer of a module may have facts, and Ansible makes variables of them that outrank those of the inventory and
    the defaults of roles. A device that has been taken over could so choose another device for the rest of its tasks,
    or a path on the controller.
  - Fails for a host whose facts have an option of this collection, whose names begin with C(iotops_tunnel_), or a
    variable of Ansible itself, such as C(inventory_hostname) or C(playbook_dir).
  - The connection P(iotops.tunnel.ssh#connection), the lookup, and the other modules look for themselves. This module
    is for plays that write on the controller what their variables say, with C(delegate_to) or C(connection=local). The
    roles and playbooks of the collection use it.
  - Other variables of a play that a fact could hide are not known here. To keep facts from being variables at all, set
    C(inject_facts_as_vars=false) in the section C([defaults]) of C(ansible.cfg).
  - Runs on the controller.
author:
  - The iotops.tunnel authors (@iotops)
extends_documentation_fragment:
  - iotops.tunnel.attributes
  - iotops.tunnel.attributes.action
attributes:
  check_mode:
    support: full
    details: Only reads.
  delegation:
    support: none
    details: The facts are those of the host that the task is for.
  diff_mode:
    support: N/A
"""

EXAMPLES = r"""
- name: See that the device has not chosen what is written below
  iotops.tunnel.check_facts:

- name: Keep the device's log
  ansible.builtin.copy:
    content: "{{ log.stdout }}"
    dest: "{{ playbook_dir }}/logs/{{ inventory_hostname }}"
    mode: "0600"
  delegate_to: localhost
"""

RETURN = r"""
"""
