# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: three devices behind NAT, and Ansible at work on them through tunnels, all on this machine.

The scenario is in ``scenario.py``. The rest, one idea per file:

``console``     what the user reads
``network``     the network that the devices live in: namespaces with NAT, or the loopback
``device``      one device: sshd, HTTP server, agent
``controller``  Ansible's side: collection, inventory, settings
``processes``   background processes, and the ends of them
``cleanup``     all that a demo leaves outside its own memory, kept in a file so that it can always be removed
"""
