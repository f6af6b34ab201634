# SPDX-License-Identifier: GPL-3.0-or-later
"""Twelve devices with real faults, one of them with systemd, are diagnosed through their tunnels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from peers import debian
from peers.broken_device import AGENT_CERTIFICATE, broken_device
from peers.browser import measured_widths, require_chromium, screenshot
from peers.fleet import Fleet
from peers.page import Page
from peers.process import wait_for

WHY_NOT = debian.why_not("test-report")
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.timeout(600)]

WITH_SYSTEMD = "pump-03"
UNREACHABLE = ("buoy-17", "weir-02")
AILMENTS: dict[str, dict[str, Any]] = {
    "gauge-05": {"filled_percent": 97, "certificate_days": -3},
    "gauge-08": {"certificate_days": 20},
    "gauge-12": {"reboot_due": True, "certificate_days": 400},
    "gauge-14": {"certificate_days": 210},
    "pump-01": {"certificate_days": 210},
    "pump-11": {"filled_percent": 88, "certificate_days": 45},
    "valve-02": {"certificate_days": 320},
    "valve-04": {"read_only": True, "certificate_days": 320},
    "valve-09": {"name_servers": False, "certificate_days": 320},
}
STATES = [
    ("buoy-17", "unreachable"),
    ("weir-02", "unreachable"),
    ("gauge-05", "critical"),
    ("pump-03", "critical"),
    ("valve-04", "critical"),
    ("gauge-08", "warning"),
    ("pump-11", "warning"),
    ("valve-09", "warning"),
    ("gauge-12", "notice"),
    ("gauge-14", "ok"),
    ("pump-01", "ok"),
    ("valve-02", "ok"),
]

# All devices share this machine's age, load and clock.
OFF = {"notice": None, "warning": None, "critical": None}
SHARED = (
    "clock_unsynchronised",
    "default_routes",
    "journal_errors",
    "kernel_errors",
    "kernel_faults",
    "kernel_taints",
    "kernel_warnings",
    "load_per_cpu",
    "memory_percent",
    "oom_kills",
    "swap_percent",
    "uptime_minutes",
)
THRESHOLDS = dict.fromkeys(SHARED, OFF)

UNITS = {
    "sampler": "[Unit]\nDescription=Reads the <script>flow</script> meter\n[Service]\nExecStart=/bin/sh -c 'exit 3'\n",
    "uplink": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=600\n",
    "logger": "[Service]\nExecStart=/bin/sleep infinity\n",
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("broken")
    enter = {thing: broken_device(thing, folder, **ailments) for thing, ailments in AILMENTS.items()}
    with Fleet(*UNREACHABLE, WITH_SYSTEMD, *AILMENTS, enter=enter) as running:
        for thing in UNREACHABLE:
            running.devices[thing].stop_proxy()
        with debian.Debian(running.devices[WITH_SYSTEMD].ssh_key) as system:
            put_in_place(running, system)
            yield running


def put_in_place(fleet: Fleet, system: debian.Debian) -> None:
    """Make one thing's tunnel lead to a system with systemd and failing services."""
    for name, unit in UNITS.items():
        system.run("sh", "-c", f'printf %s "$0" >/etc/systemd/system/{name}.service', unit)
        system.attempt("systemctl", "start", name)
    complaint = "cannot log in to the historian: password=hunter2 was refused"
    system.run("sh", "-c", f"echo '{complaint}' | systemd-cat --identifier=uplink --priority=err")
    wait_for(lambda: "historian" in system.run("journalctl", "--no-pager"), "the journal contains it")
    tunnel_id = fleet.tunnel(WITH_SYSTEMD)["tunnel_id"]
    rotated = fleet.service.boto3_client().rotate_tunnel_access_token(tunnelId=tunnel_id, clientMode="DESTINATION")
    device = fleet.devices[WITH_SYSTEMD]
    addresses = f"SSH1=127.0.0.1:{system.port},HTTP1=127.0.0.1:{device.http.port}"
    device.start_proxy_at(rotated["destinationAccessToken"], addresses)
    device.wait_connected(tunnel_id)
    known = fleet.controller.known_hosts
    others = [line for line in known.read_text().splitlines() if not line.startswith(f"{WITH_SYSTEMD} ")]
    known.write_text("\n".join([*others, f"{WITH_SYSTEMD} {system.host_key_line}"]))
    inventory = json.loads(fleet.controller.inventory.read_text())
    inventory["devices"]["hosts"][WITH_SYSTEMD].update(
        {
            "ansible_python_interpreter": "/usr/bin/python3",
            "iotops_tunnel_diagnose_units": ["logger.service", "modem.service"],
            "iotops_tunnel_diagnose_thresholds": {**THRESHOLDS, "journal_errors": {"notice": 1}, "name_servers": OFF},
        }
    )
    fleet.controller.inventory.write_text(json.dumps(inventory))


@pytest.fixture(scope="module")
def folder(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The playbook's report."""
    folder = tmp_path_factory.mktemp("diagnosis")
    inventory = json.loads(fleet.controller.inventory.read_text())
    inventory["devices"]["vars"].update(
        {
            "iotops_tunnel_diagnose_certificates": [AGENT_CERTIFICATE],
            "iotops_tunnel_diagnose_dest": str(folder),
            "iotops_tunnel_diagnose_thresholds": THRESHOLDS,
            "iotops_tunnel_diagnose_title": "Waterworks",
        }
    )
    fleet.controller.inventory.write_text(json.dumps(inventory))
    fleet.controller.timeout = 500
    ran = fleet.controller.playbook("iotops.tunnel.diagnose", "-e", "iotops_tunnel_become=false")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def device(folder: Path, thing: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "devices" / f"{thing}.yml").read_text())
    return found


def messages(folder: Path, thing: str) -> str:
    return "\n".join(finding["message"] for finding in device(folder, thing)["findings"])


def test_every_fault_is_found_on_its_device_only(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert page.devices == STATES
    assert page.errors == []
    assert page.outside == []


def test_findings_contain_the_details(folder: Path) -> None:
    assert "/srv/data is 97.0 % full, 1.9 MiB of 64 MiB left." in messages(folder, "gauge-05")
    assert f"The certificate of gauge-05 ({AGENT_CERTIFICATE}) expired 3 days ago." in messages(folder, "gauge-05")
    assert f"The certificate of gauge-08 ({AGENT_CERTIFICATE}) expires in" in messages(folder, "gauge-08")
    assert "A reboot is required: updates require it (linux-image-amd64)." in messages(folder, "gauge-12")
    assert "/srv/media is read-only, but fstab does not mount it so." in messages(folder, "valve-04")
    assert "/etc/resolv.conf has no name server." in messages(folder, "valve-09")


def test_failed_and_missing_systemd_services_are_reported(folder: Path) -> None:
    said = messages(folder, WITH_SYSTEMD)
    assert "sampler.service has failed: exit-code, status 3." in said
    assert "uplink.service keeps stopping and being restarted" in said
    assert "modem.service must be active, but is not installed." in said
    assert "logger.service" not in said
    failed = device(folder, WITH_SYSTEMD)["facts"]["services"]["failed"]
    assert "Reads the <script>flow</script> meter" in [unit["description"] for unit in failed]


def test_the_journal_is_included_without_passwords(folder: Path) -> None:
    (line,) = [
        each for each in device(folder, WITH_SYSTEMD)["facts"]["journal"]["messages"] if each["source"] == "uplink"
    ]
    assert line["message"] == "cannot log in to the historian: password=******** was refused"
    assert "hunter2" not in "".join(path.read_text() for path in folder.rglob("*.*"))


def test_a_browser_displays_the_report(folder: Path, tmp_path: Path) -> None:
    """SCREENSHOTS names a folder for the pictures of the documentation."""
    require_chromium()
    report = folder / "report.html"
    for width in (390, 1280):
        assert measured_widths(report, width) == (width, width)
    pictures = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    unfold = f"""
        const cards = [...document.querySelectorAll('article')];
        const card = cards.find(each => each.innerText.startsWith('{WITH_SYSTEMD}'));
        card.querySelector('details').open = true;
        card.scrollIntoView();
    """
    screenshot(report, 1280, 1500, pictures / "diagnose-desktop.png")
    screenshot(report, 1280, 1500, pictures / "diagnose-dark.png", dark=True)
    screenshot(report, 390, 844, pictures / "diagnose-phone.png")
    screenshot(report, 390, 1160, pictures / "diagnose-phone-details.png", script=unfold)
    assert all(path.stat().st_size > 10_000 for path in pictures.glob("diagnose-*.png"))
