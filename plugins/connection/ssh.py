# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connection plugin iotops.tunnel.ssh: ansible.builtin.ssh, through the tunnel that the hub holds for the device.

Its class is elsewhere, and loaded as bytecode: in each of its workers, and so for each task of each host, Ansible
compiles this file.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: ssh
short_description: Connect by SSH through a secure tunnel
version_added: 0.1.0
author:
  - The iotops.tunnel authors (@iotops)
description:
  - Runs the ssh, sftp and scp of the controller like P(ansible.builtin.ssh#connection), whose options it has, over a
    stream of the secure tunnel that the hub holds for the device.
  - Where the hub holds none, it uses an open tunnel of one's own again, or opens one; see O(open).
  - The device is known by its account and its thing name, in SSH's known hosts (see O(host_key_alias)) as well as in
    the path of its control socket. C(ansible_host) and C(ansible_port) mean nothing here.
  - A host's variables say which account it is in, such as C(iotops_tunnel_profile), C(iotops_tunnel_region) and, for a
    tunneling service of one's own, C(iotops_tunnel_endpoint_url). What they leave open, the task's C(environment) and
    then the environment of Ansible says, as it would to C(aws). The task's counts only for the account, not for C(PATH)
    or an HTTP proxy.
  - A device that sets facts which are options of the collection is reported as unreachable.
  - ssh writes its own messages to a file (C(-E)), so that nothing that a device prints can be mistaken for them. An
    C(-E) among ssh's arguments has no effect.
  - Where a file transfer fails while the device can be reached, the next method is tried, as with
    P(ansible.builtin.ssh#connection).
  - An unreachable device is reported as unreachable, with the reason. With C(-vvv), each argument that ssh gets is
    shown with its reason.
options:
  thing_name:
    description:
      - Name of the thing.
      - The host's name in the inventory is used when this is not set. With C(delegate_to), that is the delegate's.
      - With C(delegate_to), C(inventory_hostname) is the delegate's name in this and all other variables
        C(iotops_tunnel_*) of the delegate, where Ansible otherwise has the name of the host that the task is for. Where
        one of the task's own C(vars) is made of it, the task is refused, for it could mean either.
    type: string
    vars:
      - name: iotops_tunnel_thing
  service:
    description:
      - Name of the tunnel's service that leads to the device's SSH server.
    type: string
    default: SSH1
    vars:
      - name: iotops_tunnel_service
  answer_timeout:
    description:
      - Seconds that the device has to answer on a new connection.
      - A destination proxy tries for ten seconds to reach the SSH server before it refuses, AWS's for 12.5.
    type: int
    default: 20
    vars:
      - name: iotops_tunnel_answer_timeout
  ports:
    description:
      - Where services listen on the controller's loopback address, each as V(SERVICE=PORT), V(SERVICE=any) or
        V(SERVICE=off), for example V(HTTP1=5555). Services that are not named keep their port, or get any.
      - The port of a service for HTTP accepts only requests for the device's own name, such as C(pump-7.localhost),
        and, from programs other than browsers, for C(127.0.0.1). With V(,any-host) after it, as in
        V(HTTP1=5555,any-host), it accepts requests for any host, and so those of any web page that you open.
      - A port that cannot be had makes the device unreachable, with the reason. Services for SSH have none.
    type: list
    elements: string
    default: []
    vars:
      - name: iotops_tunnel_ports
  health_check:
    description:
      - Whether to ask the device's HTTP server for O(health_path) before each new SSH connection, and take the device
        for unreachable, with its answer, where it is not well.
      - Tasks that share an SSH connection (C(ControlPersist), a minute by default) ask once.
    type: boolean
    default: false
    vars:
      - name: iotops_tunnel_health_check
  health_service:
    description:
      - Name of the tunnel's service that leads to the device's HTTP server.
    type: string
    default: HTTP1
    vars:
      - name: iotops_tunnel_health_service
  health_path:
    description:
      - Path to ask for, with its query if it has one.
    type: string
    default: /
    vars:
      - name: iotops_tunnel_health_path
  health_status:
    description:
      - HTTP statuses of a device that is well.
    type: list
    elements: integer
    default: [200]
    vars:
      - name: iotops_tunnel_health_status
  host_key_alias:
    description:
      - The name by which SSH's known hosts know the device.
      - With V(auto), it is the thing's name in the first account in which this controller has met that name, and
        C(THING.ACCOUNT.REGION), such as V(gw.123456789012.eu-central-1), in any other. Which account was the first is
        kept in C(ssh-names.jsonl), in E(IOTOPS_TUNNEL_DIR) or C(~/.local/state/tunnelproxy).
      - With V(account), it is C(THING.ACCOUNT.REGION) always, for known hosts that several controllers share.
      - With V(thing), it is the thing's name always. Things of one name in two accounts must then have one host key.
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
      - Not to be set. What the device has said, in which names of options are refused.
    vars:
      - name: ansible_facts
  host:
    description:
      - Not to be set. The plugin makes it the thing name.
    vars:
      - name: inventory_hostname
  port:
    description:
      - Not used. The device decides which address the service leads to.
extends_documentation_fragment:
  - iotops.tunnel.opening
  - iotops.tunnel.account
  - iotops.tunnel.ssh
  # After ssh's options, whose pipelining has more names, and the first wins.
  - connection_pipelining
"""

EXAMPLES = r"""
- name: Reach devices through their tunnels, which are opened where there is none
  hosts: devices
  gather_facts: false
  connection: iotops.tunnel.ssh
  tasks:
    - name: See how long each has been up
      ansible.builtin.command: uptime
      changed_when: false

# A thing whose name is not that of the host, in an account of its own
- name: Wait for one device
  hosts: devices[0]
  gather_facts: false
  connection: iotops.tunnel.ssh
  vars:
    iotops_tunnel_thing: pump-7
    iotops_tunnel_profile: staging
    iotops_tunnel_region: eu-central-1
  tasks:
    - name: Open its tunnel, and wait until it is there
      ansible.builtin.wait_for_connection:
        timeout: 60
"""

from ansible_collections.iotops.tunnel.plugins.plugin_utils.worker import define_options, import_module

define_options(__name__, DOCUMENTATION)

Connection = import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils.ssh_connection").Connection
