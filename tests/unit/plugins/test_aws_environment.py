# SPDX-License-Identifier: GPL-3.0-or-later
"""How options, the task's environment and the controller's become one environment."""

from __future__ import annotations

import importlib

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "environment", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}


@pytest.fixture
def aws_environment(monkeypatch):
    module = importlib.import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils.aws_environment")
    for name in (*KEYS, "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    return module.aws_environment


def test_options_win_over_the_tasks_environment_and_that_over_the_controllers(aws_environment, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "controller")
    monkeypatch.setenv("AWS_CA_BUNDLE", "controller")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "controller")
    merged = aws_environment({"region": "option"}, {"AWS_REGION": "task", "AWS_CA_BUNDLE": "task", "OTHER": "x"})
    assert merged["AWS_REGION"] == "option"
    assert merged["AWS_CA_BUNDLE"] == "task"
    assert merged["AWS_DEFAULT_REGION"] == "controller"
    assert "OTHER" not in merged


def test_a_profile_replaces_keys_of_the_environment(aws_environment, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    assert not aws_environment({"profile": "work"}, {}).keys() & KEYS.keys()


def test_keys_replace_the_session_token_that_belonged_to_others(aws_environment, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    merged = aws_environment({"access_key": "a", "secret_key": "b"}, {})
    assert merged["AWS_ACCESS_KEY_ID"] == "a"
    assert "AWS_SESSION_TOKEN" not in merged
