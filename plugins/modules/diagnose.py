#!/usr/bin/python
# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module iotops.tunnel.diagnose: checks a device in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: diagnose
short_description: Diagnose a device
version_added: 0.1.0
description:
  - Checks the system, its services, journal, kernel, disks, memory, network, clock and certificates in one round trip,
    and compares the results with thresholds.
  - Reads files, mostly in C(/proc) and C(/sys), and runs C(systemctl) and C(journalctl) if systemd is running. Needs no
    other commands, and only Python's standard library.
  - Sections that cannot be checked, for example without systemd or without permission, are listed with the reason. The
    module does not fail because of them. Use C(become) to check as much as possible.
  - Changes nothing on the device.
  - The role P(iotops.tunnel.diagnose#role) creates a report for a fleet.
author:
  - The iotops.tunnel authors (@iotops)
options:
  sections:
    description:
      - What to check.
    type: list
    elements: str
    choices: [system, services, journal, kernel, disk, memory, network, time, certificates]
    default: [system, services, journal, kernel, disk, memory, network, time, certificates]
  units:
    description:
      - systemd units that must be active.
    type: list
    elements: str
    default: []
  journal_hours:
    description:
      - How many hours of the journal to read. At most the newest 500 errors are read.
    type: int
    default: 24
  log_lines:
    description:
      - Maximum number of distinct messages to return from the journal, and from the kernel's log, from 0 to 200.
      - Each message is truncated to 400 characters, and text that looks like a password, a token or a key is masked.
        Secrets in other forms are not recognised.
      - With V(0), the journal is not read, and no kernel messages are returned, only their number.
    type: int
    default: 20
  certificates:
    description:
      - Files on the device that contain PEM certificates. Wildcards are allowed. Do not list files with private keys.
      - The default lists the files of the agent that P(iotops.tunnel.agent#role) installs, and of AWS IoT Greengrass 2.
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
      - Host names that the device must be able to resolve, such as the name of its MQTT broker.
    type: list
    elements: str
    default: []
  connect:
    description:
      - Endpoints, as C(HOST:PORT), to which the device must be able to open a TCP connection. No data is sent.
    type: list
    elements: str
    default: []
  controller_time:
    description:
      - The time to compare the device's clock with, in seconds since 1970.
      - Defaults to the controller's time, with an allowance for the duration of the task.
    type: float
  thresholds:
    description:
      - The value at which a finding becomes a C(notice), a C(warning), or C(critical). Thresholds that are not set keep
        their defaults. Set one of the three to C(null) to disable it.
      - Thresholds marked "below" apply to values below the limit; the others, to values at or above it.
      - "C(uptime_minutes), below: notice 15."
      - "C(load_per_cpu), the 15-minute load average per processor: warning 2, critical 5."
      - "C(temperature_celsius): warning 80, critical 95."
      - "C(failed_units), failed systemd units: warning 1, critical 3."
      - "C(wanted_units_inactive), each of O(units) that is not active: critical 1."
      - "C(journal_errors): notice 1, warning 50."
      - "C(kernel_errors): notice 1, warning 50."
      - "C(kernel_warnings): notice 50."
      - "C(kernel_taints), the number of reasons why the kernel is tainted: notice 1."
      - "C(kernel_faults), an oops, a machine check, a bad page, or a soft lockup: warning 1."
      - "C(reboot_required): notice 1."
      - "C(disk_percent), of each filesystem: warning 85, critical 95."
      - "C(inode_percent), of each filesystem: warning 85, critical 95."
      - "C(read_only_filesystems), each that is not read-only in fstab: critical 1."
      - "C(filesystem_errors), recorded by ext4: critical 1."
      - "C(memory_percent): warning 90, critical 97."
      - "C(swap_percent): warning 80."
      - "C(oom_kills), processes that the kernel killed for lack of memory since it booted: warning 1."
      - "C(default_routes), below: warning 1."
      - "C(name_servers), below: warning 1."
      - "C(failed_tries), each of O(resolve) and O(connect) that failed: warning 1."
      - "C(clock_unsynchronised): warning 1."
      - "C(clock_offset_seconds), from the controller's clock: warning 30, critical 300."
      - "C(certificate_days), days until a certificate expires, below: notice 60, warning 30, critical 7."
    type: dict
    default: {}
extends_documentation_fragment:
  - iotops.tunnel.attributes
attributes:
  check_mode:
    support: full
    details: Read-only.
  diff_mode:
    support: N/A
seealso:
  - module: iotops.tunnel.health
"""

EXAMPLES = r"""
- name: Diagnose the device
  iotops.tunnel.diagnose:
    units: [tunnelproxy-agent.service]
    resolve: [abc123-ats.iot.eu-central-1.amazonaws.com]
    thresholds:
      disk_percent: {warning: 70, critical: 90}
      kernel_taints: {notice: null}
  become: true
  register: diagnosis

- name: Fail if a finding is critical
  ansible.builtin.assert:
    that: diagnosis.severity != 'critical'
    fail_msg: "{{ diagnosis.findings | map(attribute='message') | join(' ') }}"
"""

RETURN = r"""
severity:
  description: The worst severity of all findings (V(ok), V(notice), V(warning) or V(critical)).
  returned: always
  type: str
findings:
  description: Problems found, worst first.
  returned: always
  type: list
  elements: dict
  contains:
    section:
      description: Section of the finding.
      type: str
    severity:
      description: V(notice), V(warning) or V(critical).
      type: str
    rule:
      description: Name of the threshold that was reached.
      type: str
    message:
      description: The problem, as a sentence.
      type: str
  sample:
    - section: disk
      severity: critical
      rule: disk_percent
      message: /var is 97.1 % full, 120 MiB of 4.1 GiB left.
skipped_sections:
  description: Sections, or parts of them, that could not be checked.
  returned: always
  type: list
  elements: dict
  contains:
    section:
      description: Name of the section.
      type: str
    reason:
      description: What could not be checked, and why.
      type: str
facts:
  description: The collected facts, by section, without sections that could not be checked.
  returned: always
  type: dict
seconds:
  description: How long the checks took on the device.
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
    """Return the facts of each section, and what could not be checked."""
    facts: dict = {}
    skipped: list = []
    # The clock first: the duration of earlier sections would count as an offset.
    for section in sorted(options["sections"], key=lambda name: name != "time"):
        try:
            found = SECTIONS[section](options)
        except Unavailable as error:
            skipped.append({"section": section, "reason": str(error)})
            continue
        except Exception as error:  # an unusual device must not prevent the other sections
            reason = f"the check failed unexpectedly on this device ({type(error).__name__}: {error})"
            skipped.append({"section": section, "reason": reason})
            continue
        skipped += [{"section": section, "reason": reason} for reason in found.pop("skipped", [])]
        facts[section] = found
    return facts, skipped


def main() -> None:
    """Run the module."""
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
        module.fail_json(msg=f"log_lines must be from 0 to 200, not {options['log_lines']}.")
    if not 1 <= options["journal_hours"] <= 8760:
        module.fail_json(msg=f"journal_hours must be from 1 to 8760, not {options['journal_hours']}.")
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
