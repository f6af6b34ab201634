# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: three devices behind NAT, managed by Ansible through tunnels, all on this machine.

``scenario.py`` has the steps. The other modules:

``console``     what the user sees
``network``     the devices' network: namespaces with NAT, or the loopback interface
``device``      one device: SSH server, HTTP server, agent
``controller``  Ansible: collection, inventory, settings
``processes``   starting and stopping background processes
``cleanup``     a record of everything to remove, kept in a file in case the demo is killed
"""
