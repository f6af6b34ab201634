# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings and thresholds."""

from __future__ import annotations

import importlib
import re

import pytest
import yaml

from peers.process import REPOSITORY


@pytest.fixture(scope="module")
def judgement():
    return importlib.import_module("ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.findings")


MEMORY = {"used_percent": 91.0, "available_kib": 1024, "total_kib": 11378, "swap_used_percent": 0.0, "oom_kills": None}


def severities(judgement, facts, **thresholds):
    found = judgement.findings_of(facts, judgement.merged_thresholds(thresholds))
    return [(finding["rule"], finding["severity"]) for finding in found]


def test_a_limit_is_reached_by_its_own_value(judgement):
    facts = {"memory": {**MEMORY, "used_percent": 90.0}}
    assert severities(judgement, facts) == [("memory_percent", "warning")]
    assert severities(judgement, {"memory": {**MEMORY, "used_percent": 89.9}}) == []


def test_given_limits_lie_over_the_defaults_and_null_switches_one_off(judgement):
    facts = {"memory": MEMORY}
    assert severities(judgement, facts, memory_percent={"critical": 91}) == [("memory_percent", "critical")]
    assert severities(judgement, facts, memory_percent={"warning": None}) == []
    assert severities(judgement, facts, memory_percent={"warning": "95"}) == []


def test_where_less_is_worse_a_value_under_the_limit_counts(judgement):
    def certificate(days):
        row = {"subject": "s", "path": "p", "days_left": days, "days_until_valid": 0.0, "not_before": ""}
        return {"certificates": {"certificates": [row]}}

    assert severities(judgement, certificate(30)) == [("certificate_days", "notice")]
    assert severities(judgement, certificate(29.9)) == [("certificate_days", "warning")]
    assert severities(judgement, certificate(-1)) == [("certificate_days", "critical")]


def test_the_worst_comes_first_and_is_the_devices_severity(judgement):
    system = {"uptime_minutes": 3, "load": [0, 0, 0], "load_per_cpu": 0.0, "cpus": 1, "temperatures": []}
    memory = {**MEMORY, "used_percent": 98.0}
    found = judgement.findings_of({"system": system, "memory": memory}, judgement.merged_thresholds({}))
    assert [finding["severity"] for finding in found] == ["critical", "notice"]
    assert judgement.worst(found) == "critical"
    assert judgement.worst([]) == "ok"
    assert found[1]["message"] == "The device booted 3 minutes ago."


@pytest.mark.parametrize(
    ("thresholds", "sentence"),
    [
        ({"disc_percent": {"warning": 1}}, "There is no threshold disc_percent."),
        ({"disk_percent": 90}, "must be a dictionary of notice, warning, critical, not 90."),
        ({"disk_percent": {"fatal": 90}}, "must be a dictionary of notice, warning, critical"),
        ({"disk_percent": {"warning": "much"}}, "must be numbers, not 'much'."),
    ],
)
def test_what_is_no_threshold_is_explained(judgement, thresholds, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        judgement.merged_thresholds(thresholds)


def test_the_documentation_lists_every_threshold_with_its_default(judgement):
    source = (REPOSITORY / "plugins" / "modules" / "diagnose.py").read_text()
    documentation = yaml.safe_load(source.split('DOCUMENTATION = r"""')[1].split('"""')[0])
    text = "\n".join(documentation["options"]["thresholds"]["description"])
    page = (REPOSITORY / "docs" / "diagnose.md").read_text()
    for name, rule in judgement.RULES.items():
        limits = ", ".join(f"{severity} {limit}" for severity, limit in rule.limits.items())
        (line,) = [each for each in text.splitlines() if each.startswith(f"C({name})")]
        assert line.endswith(f": {limits}."), line
        assert (", below:" in line) == rule.below, line
        (row,) = [each for each in page.splitlines() if each.startswith(f"| `{name}`")]
        assert row.endswith(f"| {limits} |"), row
        assert (", below |" in row) == rule.below, row
