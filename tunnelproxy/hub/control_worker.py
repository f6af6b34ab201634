# SPDX-License-Identifier: Apache-2.0
"""A control process: makes calls of the control API for the hub, with the environment of one caller.

Requests arrive on standard input and answers go to standard output, one line of JSON each, in any order. The process
exits when its standard input closes, and therefore with the hub.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Callable, TextIO

from .control_answers import EndStates, FoundTunnel, Identity
from .location import HubError

__all__ = ["serve"]

log = logging.getLogger(__name__)

AT_ONCE = 10
OPENING_AT_ONCE = 4
"""Threads for calls that open tunnels, so that they wait for no other call; AWS allows one call a second."""


def serve(*, verify: bool) -> None:
    """Answer requests until standard input ends.

    Args:
        verify: whether to verify the certificate of the control API.
    """
    requests, answers = _take_standard_streams()
    operations = _operations(verify)
    writing = threading.Lock()

    def answer(request: dict[str, Any]) -> None:
        try:
            result = operations(request["op"])(**request["arguments"])
            text = json.dumps({"id": request["id"], "result": result}, default=_plain)
        except HubError as error:
            text = json.dumps({"id": request["id"], "error": error.message, "code": error.code})
        except Exception as error:  # a bug here must not look like a silent device
            log.exception("%s failed", request["op"])
            words = f"{request['op']} failed with {type(error).__name__}"
            text = json.dumps({"id": request["id"], "error": words, "code": "control-api"})
        with writing:
            answers.write(text + "\n")
            answers.flush()

    with ThreadPoolExecutor(AT_ONCE) as pool, ThreadPoolExecutor(OPENING_AT_ONCE) as opening:
        for line in requests:
            request = json.loads(line)
            (opening if _opens(request) else pool).submit(answer, request)


def _opens(request: dict[str, Any]) -> bool:
    return bool(request["op"] == "open" or request["arguments"].get("operation") == "open_tunnel")


def _take_standard_streams() -> tuple[TextIO, TextIO]:
    """Reserve standard input and output for requests and answers.

    The output of a ``credential_process`` must not be mistaken for an answer; and a program that asks for a password,
    or botocore when it asks for an MFA code, must find its input closed.
    """
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _operations(verify: bool) -> Callable[[str], Callable[..., Any]]:
    """Return a function that returns the method of an operation."""
    try:
        from .aws_api import AwsApi
    except ImportError as error:
        why = str(error)

        def unable(op: str) -> Callable[..., Any]:
            raise HubError(
                f"the Python that runs Ansible cannot use boto3 ({why}): {sys.executable} -m pip install boto3",
                code="no-boto3",
            )

        return unable
    api = AwsApi(verify=verify)
    known: dict[str, Callable[..., Any]] = {
        "identify": api.identify,
        "end_states": api.end_states,
        "take": api.take,
        "open": api.open,
        "check_registered": api.check_registered,
        "call": api.call,
    }
    return known.__getitem__


def _plain(value: object) -> Any:
    """Encode types that JSON lacks: times become ISO 8601 strings, data classes become objects."""
    if isinstance(value, (EndStates, FoundTunnel, Identity)):
        return vars(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"{type(value).__name__} cannot be encoded as JSON")
