# SPDX-License-Identifier: GPL-3.0-or-later
"""The role and playbook diagnose, through real tunnels to real devices; one is hostile, and one unreachable."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from peers.browser import measured_widths, require_chromium
from peers.certificate import make_certificate
from peers.fleet import Fleet
from peers.page import Page

HOSTILE = '"><script>alert(1)</script>{{ 7 * 7 }}' + "x" * 20
"""The common name of a certificate; RFC 5280 allows 64 characters."""

LIMITS = {"certificate_days": {"critical": 10}}


@dataclass(frozen=True)
class Run:
    """The output of a run of the playbook, and the folder that it wrote."""

    ran: CompletedProcess[str]
    folder: Path

    @property
    def html(self) -> str:
        return (self.folder / "report.html").read_text()

    @property
    def page(self) -> Page:
        return Page(self.html)

    def device(self, thing: str) -> dict[str, Any]:
        """The content of the device's file."""
        found: dict[str, Any] = yaml.safe_load((self.folder / "devices" / f"{thing}.yml").read_text())
        return found


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet("device-1", "device-2", "gone") as running:
        running.devices["gone"].stop_proxy()
        yield running


def diagnose(fleet: Fleet, folder: Path, *options: str, **variables: Any) -> Run:
    """Run the playbook; the variables are those of the role, without its prefix."""
    named = {f"iotops_tunnel_diagnose_{name}": value for name, value in variables.items()}
    extra = {"iotops_tunnel_become": False, "iotops_tunnel_diagnose_dest": str(folder), **named}
    ran = fleet.controller.playbook("iotops.tunnel.diagnose", "-e", json.dumps(extra), *options)
    return Run(ran, folder)


@pytest.fixture(scope="module")
def report(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("diagnose")
    certificate = make_certificate(folder / "expiring.pem", HOSTILE, days=3)
    (folder / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    return diagnose(
        fleet,
        folder / "out",
        certificates=[str(certificate), str(folder / "broken.pem"), "/nowhere/cert.pem"],
        resolve=["localhost"],
        thresholds=LIMITS,
        title="The fleet <of> north & south",
    )


def test_the_playbook_succeeds_although_a_device_is_unreachable(report: Run) -> None:
    assert report.ran.returncode == 0, report.ran.stdout + report.ran.stderr


def test_each_device_has_a_file_with_its_diagnosis(report: Run) -> None:
    found = report.device("device-1")
    assert found["state"] == "critical"
    facts = found["facts"]
    assert facts["system"]["uptime_minutes"] == pytest.approx(
        float(Path("/proc/uptime").read_text().split()[0]) / 60, abs=2
    )
    assert any(each["mount"] == "/" for each in facts["disk"]["filesystems"])
    assert facts["memory"]["total_kib"] > 0
    loopback = next(each for each in facts["network"]["interfaces"] if each["name"] == "lo")
    assert "127.0.0.1/8" in loopback["addresses"]
    assert facts["network"]["tries"][0]["ok"]
    assert facts["time"]["controller_offset_s"] == pytest.approx(0, abs=0.1)  # one machine, one clock
    (certificate,) = facts["certificates"]["certificates"]
    assert certificate["subject"] == HOSTILE
    assert 2.9 <= certificate["days_left"] <= 3.0
    assert facts["certificates"]["absent"] == ["/nowhere/cert.pem"]
    assert any("broken.pem contains an invalid certificate" in each["reason"] for each in found["skipped_sections"])


def test_listening_ports_are_found_with_their_process(report: Run, fleet: Fleet) -> None:
    listening = report.device("device-1")["facts"]["network"]["listening"]
    if len(listening) < 60:  # the maximum that is listed, on a busy machine
        row = next(each for each in listening if each["port"] == fleet.devices["device-1"].sshd.port)
        assert (row["protocol"], row["address"], row["process"]) == ("tcp", "127.0.0.1", "sshd")


def test_an_unreachable_device_has_a_file_too_and_comes_first_in_the_report(report: Run) -> None:
    gone = report.device("gone")
    assert gone["state"] == "unreachable"
    assert "the device gone is not connected to its tunnel" in gone["headline"]
    assert report.page.devices == [("gone", "unreachable"), ("device-1", "critical"), ("device-2", "critical")]
    assert "the device gone is not connected to its tunnel" in report.page.text


def test_the_report_is_well_formed_and_self_contained(report: Run) -> None:
    page = report.page
    assert page.errors == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert page.outside == []
    assert "url(" not in report.html
    assert "@import" not in report.html


def test_output_of_a_device_stays_text(report: Run) -> None:
    assert report.page.text.count(HOSTILE) >= 4  # a finding and a fact of two devices
    assert "The fleet <of> north & south" in report.page.text


def test_only_the_owner_can_read_the_files(report: Run) -> None:
    files = [path for path in report.folder.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_the_terminal_shows_the_devices_worst_first(report: Run) -> None:
    lines = [line for line in report.ran.stdout.splitlines() if line.strip().startswith(('"unreachable', '"critical'))]
    assert [line.split()[1] for line in lines] == ["gone", "device-1", "device-2"]


def test_check_mode_diagnoses_and_writes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    checked = diagnose(
        fleet, tmp_path / "out", "--check", "--limit", "device-1", sections=["disk"], fail_at="unreachable"
    )
    assert checked.ran.returncode == 0, checked.ran.stdout + checked.ran.stderr
    assert "device-1" in checked.ran.stdout
    assert not (tmp_path / "out").exists()


def test_missing_or_invalid_answers_do_not_spoil_the_report(fleet: Fleet, tmp_path: Path) -> None:
    answer = json.dumps({"severity": "critical", "findings": "<b>", "facts": [1], "skipped_sections": 7})
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {shlex.quote(answer)}\n")
    python.chmod(0o755)
    inventory = json.loads(fleet.controller.inventory.read_text())
    hosts = inventory["devices"]["hosts"]
    hosts["device-1"]["ansible_python_interpreter"] = str(python)
    hosts["device-2"]["ansible_python_interpreter"] = "/nowhere/python"
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps(inventory))

    run = diagnose(fleet, tmp_path / "out", "-i", str(file), fail_at="failed")
    assert run.ran.returncode == 2, run.ran.stdout + run.ran.stderr
    assert run.page.devices == [("gone", "unreachable"), ("device-1", "not diagnosed"), ("device-2", "not diagnosed")]
    assert "The device's answer is not a valid diagnosis." in run.page.text
    assert "interpreter" in run.page.text  # the text differs between releases of ansible-core
    assert run.page.errors == []


def test_a_wrong_clock_is_found(fleet: Fleet) -> None:
    late = time.time() + 3600
    outcome = fleet.controller.module("iotops.tunnel.diagnose", "device-1", controller_time=late, sections=["time"])
    assert outcome["device-1"].result["severity"] == "critical"
    assert outcome["device-1"].result["findings"][0]["rule"] == "clock_offset_seconds"
    assert "behind the controller's" in outcome["device-1"].result["findings"][0]["message"]


def test_an_unknown_threshold_is_named(fleet: Fleet) -> None:
    outcome = fleet.controller.module("iotops.tunnel.diagnose", "device-1", thresholds={"disk": {"warning": 1}})
    assert outcome["device-1"].word == "FAILED"
    assert "There is no threshold disk. Use one of: certificate_days," in outcome["device-1"].message


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_report_without_scrolling_sideways(report: Run, width: int) -> None:
    require_chromium()
    inner, needed = measured_widths(report.folder / "report.html", width)
    assert inner == width
    assert needed <= width
