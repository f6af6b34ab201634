# SPDX-License-Identifier: GPL-3.0-or-later
"""What a control process answers, line by line."""

from __future__ import annotations

import io
import json
import sys
from datetime import datetime, timezone
from typing import Any

import pytest

from tunnelproxy.hub import control_worker
from tunnelproxy.hub.control_answers import EndStates
from tunnelproxy.hub.location import HubError


class Api:
    """What is asked for, and what comes of it."""

    def __init__(self, *, verify: bool) -> None:
        self.verify = verify

    def identify(self, thing: str) -> Any:
        if thing == "fault":
            raise ZeroDivisionError
        if thing:
            raise HubError(f"not {thing}", code="wrong-credentials")
        return EndStates(owner=str(self.verify))

    end_states = take = open = check_registered = identify

    def call(self, **parameters: Any) -> Any:
        return {"at": datetime(2026, 1, 2, tzinfo=timezone.utc), "bytes": b"x\xff", **parameters}


def answers(monkeypatch: pytest.MonkeyPatch, *requests: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    lines = "".join(
        json.dumps({"id": number, "op": op, "arguments": arguments}) + "\n"
        for number, (op, arguments) in enumerate(requests)
    )
    written = io.StringIO()
    monkeypatch.setattr(control_worker, "_take_standard_streams", lambda: (io.StringIO(lines), written))
    control_worker.serve(verify=False)
    return sorted((json.loads(line) for line in written.getvalue().splitlines()), key=lambda answer: answer["id"])


def test_each_request_has_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.hub.aws_api.AwsApi", Api)
    found = answers(
        monkeypatch,
        ("identify", {"thing": ""}),
        ("identify", {"thing": "pump"}),
        ("identify", {"thing": "fault"}),
        ("call", {"x": 1}),
        ("fly", {}),
    )
    assert found == [
        {"id": 0, "result": {"tunnel": "", "destination": "unknown", "arn": "", "owner": "False"}},
        {"id": 1, "error": "not pump", "code": "wrong-credentials"},
        {"id": 2, "error": "identify failed with ZeroDivisionError", "code": "control-api"},
        {"id": 3, "result": {"at": "2026-01-02T00:00:00+00:00", "bytes": "x�", "x": 1}},
        {"id": 4, "error": "fly failed with KeyError", "code": "control-api"},
    ]


def test_a_python_without_botocore_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tunnelproxy.hub.aws_api", None)
    (answer,) = answers(monkeypatch, ("identify", {"thing": ""}))
    assert answer["code"] == "no-boto3"
    assert answer["error"].endswith("-m pip install boto3")


def test_what_has_no_form_in_json_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnelproxy.hub.aws_api.AwsApi", Api)
    monkeypatch.setattr(Api, "call", lambda self: object())
    assert answers(monkeypatch, ("call", {}))[0]["error"] == "call failed with TypeError"
