# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings: the facts of a device compared with thresholds, which determine the severity of each.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["RULES", "SEVERITIES", "findings_of", "merged_thresholds", "worst"]

SEVERITIES = ("ok", "notice", "warning", "critical")
# Findings of one kind, such as failed units. A last one has the number of the rest.
MOST = 10


@dataclass(frozen=True)
class Rule:
    """The limits of a value: at or above each, or with C(below) below it, the value has that severity."""

    limits: dict
    below: bool = False


RULES = {
    "uptime_minutes": Rule({"notice": 15}, below=True),
    "load_per_cpu": Rule({"warning": 2, "critical": 5}),
    "temperature_celsius": Rule({"warning": 80, "critical": 95}),
    "failed_units": Rule({"warning": 1, "critical": 3}),
    "wanted_units_inactive": Rule({"critical": 1}),
    "journal_errors": Rule({"notice": 1, "warning": 50}),
    "kernel_errors": Rule({"notice": 1, "warning": 50}),
    "kernel_warnings": Rule({"notice": 50}),
    "kernel_taints": Rule({"notice": 1}),
    "kernel_faults": Rule({"warning": 1}),
    "reboot_required": Rule({"notice": 1}),
    "disk_percent": Rule({"warning": 85, "critical": 95}),
    "inode_percent": Rule({"warning": 85, "critical": 95}),
    "read_only_filesystems": Rule({"critical": 1}),
    "filesystem_errors": Rule({"critical": 1}),
    "memory_percent": Rule({"warning": 90, "critical": 97}),
    "swap_percent": Rule({"warning": 80}),
    "oom_kills": Rule({"warning": 1}),
    "default_routes": Rule({"warning": 1}, below=True),
    "name_servers": Rule({"warning": 1}, below=True),
    "failed_tries": Rule({"warning": 1}),
    "clock_unsynchronised": Rule({"warning": 1}),
    "clock_offset_seconds": Rule({"warning": 30, "critical": 300}),
    "certificate_days": Rule({"notice": 60, "warning": 30, "critical": 7}, below=True),
}


def merged_thresholds(given: dict) -> dict:
    """Merge the user's thresholds into the defaults. Raise ValueError with a message for the user.

    A limit of null, as in C(swap_percent: {warning: null}), disables that severity.
    """
    merged = {name: dict(rule.limits) for name, rule in RULES.items()}
    for name, limits in given.items():
        if name not in RULES:
            raise ValueError(f"There is no threshold {name}. Use one of: {', '.join(sorted(RULES))}.")
        if not isinstance(limits, dict) or not set(limits) <= set(SEVERITIES[1:]):
            raise ValueError(
                f"The threshold {name} must be a dictionary of {', '.join(SEVERITIES[1:])}, not {limits!r}."
            )
        for severity, limit in limits.items():
            merged[name][severity] = _limit(name, limit)
    return merged


def _limit(name: str, limit: Any) -> float | None:
    # Some releases of Ansible turn a templated number into a string, and null into "None" or an empty string.
    if limit is None or limit in ("", "None"):
        return None
    try:
        return float(limit)
    except (TypeError, ValueError):
        raise ValueError(f"The limits of the threshold {name} must be numbers, not {limit!r}.") from None


def findings_of(facts: dict, thresholds: dict) -> list:
    """Compare the facts of all sections with the thresholds. Return the findings, worst first, without ok.

    Args:
        facts: the facts by section, without sections that could not be checked.
        thresholds: from L(merged_thresholds).
    """
    found = _Findings(thresholds)
    for section, look in _LOOKS.items():
        if section in facts:
            found.section = section
            look(facts[section], found)
    return sorted(found.findings, key=lambda finding: -SEVERITIES.index(finding["severity"]))


def worst(findings: list) -> str:
    """Return the worst severity of these findings."""
    return max((finding["severity"] for finding in findings), key=SEVERITIES.index, default="ok")


class _Findings:
    """Collects the findings of the current section."""

    def __init__(self, thresholds: dict) -> None:
        self._thresholds = thresholds
        self.section = ""
        self.findings: list = []

    def measure(self, rule: str, value: float | None, message: str) -> None:
        """Add a finding if the value has reached a limit. None is a value that the device does not have."""
        severity = "ok" if value is None else self._severity(rule, value)
        if severity != "ok":
            self.findings.append({"section": self.section, "severity": severity, "rule": rule, "message": message})

    def _severity(self, rule: str, value: float) -> str:
        for severity in reversed(SEVERITIES[1:]):
            limit = self._thresholds[rule].get(severity)
            if limit is not None and (value < limit if RULES[rule].below else value >= limit):
                return severity
        return "ok"


def _system(facts: dict, found: _Findings) -> None:
    minutes = facts["uptime_minutes"]
    found.measure("uptime_minutes", minutes, f"The device booted {_count(minutes, 'minute')} ago.")
    load = facts["load_per_cpu"]
    found.measure(
        "load_per_cpu",
        load,
        f"The 15-minute load is {facts['load'][2]}, or {load} per processor ({_count(facts['cpus'], 'processor')}).",
    )
    for zone in facts["temperatures"]:
        name = zone["zone"] or "A temperature sensor"
        found.measure("temperature_celsius", zone["celsius"], f"{name} is at {zone['celsius']} °C.")


def _services(facts: dict, found: _Findings) -> None:
    count = facts["failed_count"]
    for unit in facts["failed"][:MOST]:
        found.measure("failed_units", count, _why_failed(unit))
    if count > MOST:
        found.measure("failed_units", count, f"{count - MOST} more units have failed.")
    for unit in facts["wanted"]:
        state = "not installed" if unit["load"] == "not-found" else f"{unit['active']} ({unit['sub']})"
        inactive = unit["active"] not in {"active", "reloading"}
        found.measure("wanted_units_inactive", int(inactive), f"{unit['unit']} must be active, but is {state}.")


def _why_failed(unit: dict) -> str:
    if unit["active"] == "failed":
        what = f"{unit['unit']} has failed"
    else:
        what = f"{unit['unit']} keeps stopping and being restarted"
        what += f", {_count(unit['restarts'], 'time')} so far" if unit["restarts"] else ""
    reason = "" if unit["result"] in {"", "success"} else f": {unit['result']}"
    if reason and unit["exit_status"]:
        reason += f", status {unit['exit_status']}"
    return f"{what}{reason}."


def _journal(facts: dict, found: _Findings) -> None:
    count = facts["errors"]
    if count:
        number = f"{'At least ' if facts['errors_are_more'] else ''}{_count(count, 'error')}"
        newest = facts["messages"][0]
        source = newest["source"] or "an unknown program"
        text = f"{number} in the last {facts['hours']} h. The newest, from {source}: {newest['message']}"
        found.measure("journal_errors", count, text)


def _kernel(facts: dict, found: _Findings) -> None:
    for fault in facts["faults"]:
        found.measure("kernel_faults", 1, f"The kernel has had a fault since it booted: {fault}.")
    found.measure("kernel_taints", len(facts["taints"]), f"The kernel is tainted: {', '.join(facts['taints'])}.")
    for reason in facts["reboot_reasons"]:
        found.measure("reboot_required", 1, f"A reboot is required: {reason}.")
    found.measure("kernel_errors", facts.get("errors"), f"{_count(facts.get('errors'), 'error')} in the kernel's log.")
    warnings = facts.get("warnings")
    found.measure("kernel_warnings", warnings, f"{_count(warnings, 'warning')} in the kernel's log.")


def _disk(facts: dict, found: _Findings) -> None:
    for each in facts["filesystems"]:
        where = each["mount"]
        if not each["image"]:
            left = f"{_size(each['free_kib'])} of {_size(each['size_kib'])} left"
            found.measure("disk_percent", each["used_percent"], f"{where} is {each['used_percent']} % full, {left}.")
            inodes = each["inodes_used_percent"]
            found.measure("inode_percent", inodes, f"{where} has used {inodes} % of its inodes.")
        if each["read_only"] and not each["read_only_meant"]:
            found.measure("read_only_filesystems", 1, f"{where} is read-only, but fstab does not mount it so.")
        errors = each["errors"]
        found.measure(
            "filesystem_errors", errors, f"{where} has recorded {_count(errors, 'error')}; check it with fsck."
        )


def _memory(facts: dict, found: _Findings) -> None:
    used, swap, kills = facts["used_percent"], facts["swap_used_percent"], facts["oom_kills"]
    available = f"{_size(facts['available_kib'])} of {_size(facts['total_kib'])} available"
    found.measure("memory_percent", used, f"Memory is {used} % used, {available}.")
    found.measure("swap_percent", swap, f"Swap is {swap} % used.")
    found.measure("oom_kills", kills, f"{_count(kills, 'process was', 'processes were')} killed for lack of memory.")


def _network(facts: dict, found: _Findings) -> None:
    found.measure("default_routes", len(facts["default_routes"]), "There is no default route.")
    found.measure("name_servers", len(facts["name_servers"]), "/etc/resolv.conf has no name server.")
    words = {"resolve": "cannot be resolved", "connect": "cannot be reached"}
    for each in facts["tries"]:
        text = f"{each['subject']} {words[each['kind']]} from the device: {each['detail']}."
        found.measure("failed_tries", int(not each["ok"]), text)


def _time(facts: dict, found: _Findings) -> None:
    unsynchronised = None if facts.get("synchronised") is None else int(not facts["synchronised"])
    found.measure("clock_unsynchronised", unsynchronised, "The clock is not synchronised.")
    offset = facts["controller_offset_s"]
    if offset is not None:
        direction = "ahead of" if offset > 0 else "behind"
        found.measure(
            "clock_offset_seconds", abs(offset), f"The clock is {_duration(abs(offset))} {direction} the controller's."
        )


def _certificates(facts: dict, found: _Findings) -> None:
    for each in facts["certificates"]:
        days, name = each["days_left"], f"The certificate of {each['subject']} ({each['path']})"
        if days < 0:
            text = f"{name} expired {_count(int(-days), 'day')} ago."
        else:
            text = f"{name} expires in {_count(int(days), 'day')}."
        found.measure("certificate_days", days, text)
        if each["days_until_valid"] > 0:
            # As severe as an expired one. A slow clock has the same effect.
            found.measure("certificate_days", -1, f"{name} is not valid until {each['not_before']}.")


_LOOKS = {
    "system": _system,
    "services": _services,
    "journal": _journal,
    "kernel": _kernel,
    "disk": _disk,
    "memory": _memory,
    "network": _network,
    "time": _time,
    "certificates": _certificates,
}


def _count(number: object, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _size(kib: int) -> str:
    size = float(kib)
    for unit in ("KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "KiB" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172800 else f"{seconds / 86400:.0f} days"
