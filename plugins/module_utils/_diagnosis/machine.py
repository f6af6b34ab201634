# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine: its identity, load, temperatures, memory, kernel and clock.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import socket
import time
from collections.abc import Iterator

from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.reading import (
    Unavailable,
    masked,
    read_number,
    read_text,
)

__all__ = ["kernel", "memory", "system", "time_of_day"]

# By bit; see Documentation/admin-guide/tainted-kernels.rst in the kernel's source.
TAINTS = {
    0: "proprietary module",
    1: "module was force-loaded",
    2: "kernel out of specification",
    3: "module was force-unloaded",
    4: "machine check",
    5: "bad page",
    6: "taint requested by a user",
    7: "kernel died (oops)",
    8: "ACPI table overridden",
    9: "kernel issued a warning",
    10: "staging driver",
    11: "firmware bug worked around",
    12: "out-of-tree module",
    13: "unsigned module",
    14: "soft lockup",
    15: "live patched",
    16: "auxiliary taint",
    17: "built with the struct randomisation plugin",
    18: "in-kernel test was run",
}
FAULTS = (4, 5, 7, 14)

# <linux/timex.h>
STA_UNSYNC = 0x0040
STA_NANO = 0x2000

KMSG_RECORD = 8192
KMSG_LEVELS = ("emergency", "alert", "critical", "error", "warning")


def system() -> dict:
    """Return the device's identity, uptime, load and temperatures."""
    load = os.getloadavg()
    return {
        "hostname": socket.gethostname(),
        "os": _os_name(),
        "model": _model(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "init": _first_line("/proc/1/comm"),
        "cpus": os.cpu_count() or 1,
        "load": [round(each, 2) for each in load],
        "load_per_cpu": round(load[2] / (os.cpu_count() or 1), 2),
        "uptime_minutes": int(float(read_text("/proc/uptime").split()[0]) // 60),
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "temperatures": _temperatures(),
        "root": os.geteuid() == 0,
    }


def memory(top: int = 5) -> dict:
    """Return memory and swap in KiB, the number of OOM kills since boot, and the largest processes, by name only."""
    figures = {}
    for line in read_text("/proc/meminfo").splitlines():
        name, separator, rest = line.partition(":")
        if separator:
            figures[name] = int(rest.split()[0])
    total, swap = figures["MemTotal"], figures.get("SwapTotal", 0)
    # Linux 3.14 and newer have MemAvailable.
    available = figures.get("MemAvailable", figures["MemFree"] + figures.get("Cached", 0))
    return {
        "total_kib": total,
        "available_kib": available,
        "used_percent": _percent(total - available, total),
        "swap_total_kib": swap,
        "swap_used_percent": _percent(swap - figures.get("SwapFree", 0), swap),
        "oom_kills": _oom_kills(),
        "largest": _largest_processes(top),
    }


def kernel(lines: int) -> dict:
    """Return the kernel's version, its taints, its errors and warnings since boot, and whether a reboot is required.

    Args:
        lines: how many distinct messages to return, the newest ones.
    """
    tainted = read_number("/proc/sys/kernel/tainted") or 0
    bits = [bit for bit in range(tainted.bit_length()) if tainted >> bit & 1]
    facts = {
        "version": platform.release(),
        "build": platform.version(),
        "tainted": tainted,
        "taints": [TAINTS.get(bit, f"bit {bit}") for bit in bits],
        "faults": [TAINTS[bit] for bit in bits if bit in FAULTS],
        "reboot_reasons": _reboot_reasons(),
    }
    try:
        facts.update(_kernel_messages(lines))
    except Unavailable as error:
        facts["skipped"] = [str(error)]
    return facts


def time_of_day(controller_time: float | None) -> dict:
    """Return the device's time, whether it is synchronised, and its offset from the controller's.

    Args:
        controller_time: the controller's time when it sent the task, in seconds since 1970. The offset includes the
            time until the task started on the device, for which the action plugin allows.
    """
    now = time.time()
    facts: dict = {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "zone": time.strftime("%Z"),
        "controller_offset_s": round(now - controller_time, 1) if controller_time else None,
    }
    try:
        facts.update(_clock_discipline())
    except Unavailable as error:
        facts["skipped"] = [str(error)]
    return facts


def _os_name() -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            lines = read_text(path).splitlines()
        except Unavailable:
            continue
        for line in lines:
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip().strip("\"'")
    return platform.system()


def _model() -> str:
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        name = _first_line(path)
        if name:
            return name
    return ""


def _first_line(path: str) -> str:
    try:
        return (read_text(path, 4096).rstrip("\x00\n").splitlines() or [""])[0]
    except Unavailable:
        return ""


def _temperatures() -> list:
    found = []
    for zone in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        thousandths = read_number(f"{zone}/temp")
        if thousandths is not None:
            found.append({"zone": _first_line(f"{zone}/type"), "celsius": round(thousandths / 1000, 1)})
    return found


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


def _oom_kills() -> int | None:
    """Return how many processes the kernel killed for lack of memory since boot. Linux 4.13 and newer count them."""
    for line in read_text("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return None


def _largest_processes(count: int) -> list:
    page = os.sysconf("SC_PAGE_SIZE") // 1024
    sizes = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            resident = int(read_text(f"/proc/{pid}/statm").split()[1]) * page
        except (Unavailable, IndexError):
            continue  # it has exited
        sizes.append((resident, pid))
    largest = sorted(sizes, reverse=True)[:count]
    return [{"name": _first_line(f"/proc/{pid}/comm"), "pid": int(pid), "kib": size} for size, pid in largest]


def _reboot_reasons() -> list:
    reasons = []
    if any(os.path.exists(path) for path in ("/run/reboot-required", "/var/run/reboot-required")):
        packages = _packages_that_want_a_reboot()
        reasons.append(f"updates require it ({', '.join(packages)})" if packages else "updates require it")
    # The package of the running kernel was replaced or removed: no module can be loaded until the next boot.
    installed = os.listdir("/lib/modules") if os.path.isdir("/lib/modules") else []
    if installed and platform.release() not in installed:
        reasons.append("the modules of the running kernel were removed")
    return reasons


def _packages_that_want_a_reboot() -> list:
    try:
        return sorted(set(read_text("/run/reboot-required.pkgs").split()))[:10]
    except Unavailable:
        return []


def _kernel_messages(count: int) -> dict:
    """Read the kernel's log, without a command, as far back as the kernel keeps it."""
    errors = warnings = 0
    seen: dict = {}
    for level, seconds, text in _kmsg():
        errors += level <= 3
        warnings += level == 4
        earlier = seen.pop(text, {"count": 0})
        seen[text] = {
            "level": KMSG_LEVELS[level],
            "uptime_s": seconds,
            "message": masked(text),
            "count": earlier["count"] + 1,
        }
    newest = list(seen.values())[-count:] if count else []
    return {"errors": errors, "warnings": warnings, "messages": newest}


def _kmsg() -> Iterator[tuple[int, int, str]]:
    """Generate level, seconds since boot and text of the kernel's own warnings and errors, oldest first."""
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except PermissionError:
        raise Unavailable("this user may not read the kernel's log; use become") from None
    except OSError as error:
        raise Unavailable(f"the kernel's log cannot be read: /dev/kmsg: {error.strerror}") from None
    try:
        while True:
            try:
                record = os.read(descriptor, KMSG_RECORD)
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # records were overwritten; the next read returns the oldest one left
            head, _separator, text = record.decode("utf-8", "replace").partition(";")
            fields = head.split(",")
            priority = int(fields[0])
            # The upper bits are the facility; the kernel's own is 0.
            if priority <= 4:
                yield priority, int(fields[2]) // 1_000_000, text.split("\n", 1)[0]
    finally:
        os.close(descriptor)


class _Timex(ctypes.Structure):
    """The beginning of C(struct timex), which is the same on all architectures, and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 64),
    )


def _clock_discipline() -> dict:
    """Ask the kernel, which every NTP client informs. This needs no permissions, and no command of the client."""
    timex = _Timex()  # modes 0: read only
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        raise Unavailable("the C library of this device cannot tell whether the clock is synchronised") from None
    if state == -1:
        raise Unavailable(
            f"the kernel does not tell whether the clock is synchronised: {os.strerror(ctypes.get_errno())}"
        )
    unit = 1e9 if timex.status & STA_NANO else 1e6
    return {
        "synchronised": not timex.status & STA_UNSYNC,
        "ntp_offset_s": round(timex.offset / unit, 6),
        "max_error_s": round(timex.maxerror / 1e6, 6),
    }
