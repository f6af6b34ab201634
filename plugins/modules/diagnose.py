#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look a device over in one go."""

from __future__ import annotations

DOCUMENTATION = r"""
module: diagnose
short_description: Look a device over, and say what is wrong with it
version_added: 0.1.0
description:
  - Looks at the system, its services, journal, kernel, disks, memory, network, clock and certificates, in one round
    trip, and judges what it finds by thresholds.
  - Reads files of the kernel, and runs C(systemctl) and C(journalctl) where systemd runs. It needs no other command,
    and nothing of Python beyond its standard library.
  - What cannot be looked at, for lack of systemd or of rights, is listed with the reason, and is no failure. With
    C(become), most can be looked at.
  - Changes nothing on the device.
  - The role P(iotops.tunnel.diagnose#role) makes a report of it for a fleet.
author:
  - The iotops.tunnel authors (@iotops)
options:
  sections:
    description:
      - What to look at.
    type: list
    elements: str
    choices: [system, services, journal, kernel, disk, memory, network, time, certificates]
    default: [system, services, journal, kernel, disk, memory, network, time, certificates]
  units:
    description:
      - Units of systemd that must be active.
    type: list
    elements: str
    default: []
  journal_hours:
    description:
      - How many hours of the journal to look at. At most the newest 500 errors are read.
    type: int
    default: 24
  log_lines:
    description:
      - How many different messages of the journal, and of the kernel, are returned, from 0 to 200.
      - Each is cut off after 400 characters, and what looks like a password, a token or a key is masked. A program may
        log a secret in a form that is not recognised, though.
      - V(0) leaves the journal unread, and the texts of the kernel's messages out.
    type: int
    default: 20
  certificates:
    description:
      - Files of the device with certificates in PEM form. They may have wildcards. Name no files with private keys.
      - The default is those of the agent that P(iotops.tunnel.agent#role) installs, and of AWS IoT Greengrass 2.
    type: list
    elements: str
    default:
      - /etc/tunnelproxy-agent/broker-cert.pem
      - /etc/tunnelproxy-agent/broker-ca.pem
      - /etc/tunnelproxy-agent/endpoint-ca.pem
      - /greengrass/v2/thingCert.crt
      - /greengrass/v2/rootCA.pem
  resolve:
    description:
      - Host names that the device must be able to resolve, such as that of its MQTT broker.
    type: list
    elements: str
    default: []
  connect:
    description:
      - Endpoints, as C(HOST:PORT), that the device must be able to connect to by TCP. Nothing is sent there.
    type: list
    elements: str
    default: []
  controller_time:
    description:
      - The controller's clock, in seconds since 1970, to compare the device's with.
      - Need not be given. Without it, what the task itself took is allowed for.
    type: float
  thresholds:
    description:
      - From which value on something is a C(notice), a C(warning), or C(critical). What is not given keeps its default.
        C(null) for one of the three switches it off.
      - For those marked with "under", values below the limit count.
      - "C(uptime_minutes), under: notice 15."
      - "C(load_per_cpu), the load over 15 minutes by processor: warning 2, critical 5."
      - "C(temperature_celsius): warning 80, critical 95."
      - "C(failed_units), of systemd: warning 1, critical 3."
      - "C(wanted_units_inactive), each of O(units) that is not active: critical 1."
      - "C(journal_errors): notice 1, warning 50."
      - "C(kernel_errors): notice 1, warning 50."
      - "C(kernel_warnings): notice 50."
      - "C(kernel_taints), how many reasons the kernel has to be tainted: notice 1."
      - "C(kernel_faults), an oops, a machine check, a bad page, a soft lockup: warning 1."
      - "C(reboot_required): notice 1."
      - "C(disk_percent), of each filesystem: warning 85, critical 95."
      - "C(inode_percent), of each filesystem: warning 85, critical 95."
      - "C(read_only_filesystems), each that fstab does not want so: critical 1."
      - "C(filesystem_errors), that ext4 has noted: critical 1."
      - "C(memory_percent): warning 90, critical 97."
      - "C(swap_percent): warning 80."
      - "C(oom_kills), processes killed for lack of memory since the start: warning 1."
      - "C(default_routes), under: warning 1."
      - "C(name_servers), under: warning 1."
      - "C(failed_tries), each of O(resolve) and O(connect): warning 1."
      - "C(clock_unsynchronised): warning 1."
      - "C(clock_offset_seconds), from the controller's clock: warning 30, critical 300."
      - "C(certificate_days), under: notice 60, warning 30, critical 7."
    type: dict
    default: {}
extends_documentation_fragment:
  - iotops.tunnel.attributes
attributes:
  check_mode:
    support: full
    details: Only reads.
  diff_mode:
    support: N/A
seealso:
  - module: iotops.tunnel.health
"""

EXAMPLES = r"""
- name: Look the device over
  iotops.tunnel.diagnose:
    units: [tunnelproxy-agent.service]
    resolve: [abc123-ats.iot.eu-central-1.amazonaws.com]
    thresholds:
      disk_percent: {warning: 70, critical: 90}
      kernel_taints: {notice: null}
  become: true
  register: looked

- name: Stop where something is critical
  ansible.builtin.assert:
    that: looked.severity != 'critical'
    fail_msg: "{{ looked.findings | map(attribute='message') | join(' ') }}"
"""

RETURN = r"""
severity:
  description: The worst severity of all findings, V(ok), V(notice), V(warning) or V(critical).
  returned: always
  type: str
findings:
  description: What is not as it should be, worst first.
  returned: always
  type: list
  elements: dict
  contains:
    section:
      description: Where it was found.
      type: str
    severity:
      description: V(notice), V(warning) or V(critical).
      type: str
    rule:
      description: Name of the threshold that it has reached.
      type: str
    message:
      description: What it is.
      type: str
  sample:
    - section: disk
      severity: critical
      rule: disk_percent
      message: /var is 97.1 % full, 120 MiB of 4.1 GiB left.
skipped_sections:
  description: What could not be looked at, and why.
  returned: always
  type: list
  elements: dict
  contains:
    section:
      description: Where it would belong.
      type: str
    reason:
      description: Why it could not be looked at.
      type: str
facts:
  description: What was found, by section. A section that could not be looked at is not there.
  returned: always
  type: dict
seconds:
  description: How long the looking took on the device.
  returned: always
  type: float
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis import (
    certificates,
    findings,
    machine,
    network,
    storage,
    systemd,
)
from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.reading import Unavailable, bounded

SECTIONS = {
    "system": lambda options: machine.system(),
    "services": lambda options: systemd.services(options["units"]),
    "journal": lambda options: systemd.journal(options["journal_hours"], options["log_lines"]),
    "kernel": lambda options: machine.kernel(options["log_lines"]),
    "disk": lambda options: storage.disk(),
    "memory": lambda options: machine.memory(),
    "network": lambda options: network.network(options["resolve"], options["connect"]),
    "time": lambda options: machine.time_of_day(options["controller_time"]),
    "certificates": lambda options: certificates.certificates(options["certificates"]),
}

CERTIFICATES = [
    "/etc/tunnelproxy-agent/broker-cert.pem",
    "/etc/tunnelproxy-agent/broker-ca.pem",
    "/etc/tunnelproxy-agent/endpoint-ca.pem",
    "/greengrass/v2/thingCert.crt",
    "/greengrass/v2/rootCA.pem",
]


def look(options: dict) -> tuple:
    """Return the facts of each section, and what could not be looked at."""
    facts: dict = {}
    skipped: list = []
    # The clock first: what takes long would count as its being wrong.
    for section in sorted(options["sections"], key=lambda name: name != "time"):
        try:
            found = SECTIONS[section](options)
        except Unavailable as error:
            skipped.append({"section": section, "reason": str(error)})
            continue
        except Exception as error:  # a device as nobody has seen one; what else there is to see is seen all the same
            reason = f"it is not as expected on this device ({type(error).__name__}: {error})"
            skipped.append({"section": section, "reason": reason})
            continue
        skipped += [{"section": section, "reason": reason} for reason in found.pop("skipped", [])]
        facts[section] = found
    return facts, skipped


def main() -> None:
    """Run as a module."""
    every = list(SECTIONS)
    module = AnsibleModule(
        argument_spec={
            "sections": {"type": "list", "elements": "str", "choices": every, "default": every},
            "units": {"type": "list", "elements": "str", "default": []},
            "journal_hours": {"type": "int", "default": 24},
            "log_lines": {"type": "int", "default": 20},
            "certificates": {"type": "list", "elements": "str", "default": CERTIFICATES},
            "resolve": {"type": "list", "elements": "str", "default": []},
            "connect": {"type": "list", "elements": "str", "default": []},
            "controller_time": {"type": "float"},
            "thresholds": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    options = module.params
    if not 0 <= options["log_lines"] <= 200:
        module.fail_json(msg=f"log_lines goes from 0 to 200, not {options['log_lines']}.")
    if not 1 <= options["journal_hours"] <= 8760:
        module.fail_json(msg=f"journal_hours goes from 1 to 8760, not {options['journal_hours']}.")
    try:
        thresholds = findings.merged_thresholds(options["thresholds"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    started = time.monotonic()
    facts, skipped = look(options)
    facts = bounded(facts)
    found = bounded(findings.findings_of(facts, thresholds))
    module.exit_json(
        changed=False,
        severity=findings.worst(found),
        findings=found,
        skipped_sections=bounded(skipped),
        facts=facts,
        seconds=round(time.monotonic() - started, 2),
    )


if __name__ == "__main__":
    main()
