# SPDX-License-Identifier: Apache-2.0
"""Regions, configuration files and parameters that are not valid."""

from __future__ import annotations

from .caller_config import config_file
from .case import Case, Failure

__all__ = ["SELF_HOSTED", "bad_config_file", "bad_endpoint", "bad_parameters", "bad_region", "bad_setting", "no_region"]


SELF_HOSTED = 'for a service of your own, run `eval "$(tunnelproxy service env)"`'


def no_region(case: Case) -> Failure:
    """``NoRegionError``."""
    return Failure(
        "wrong-region",
        f"no AWS region is set: set AWS_REGION, or the region of the profile {case.caller.profile} "
        f"({case.caller.set_region}); {SELF_HOSTED}",
    )


def bad_region(case: Case) -> Failure:
    """The region does not exist."""
    name = case.kwargs.get("region_name", case.region)
    return Failure(
        "wrong-region",
        f"{case.words(repr(name))} is not the name of an AWS region: set {case.caller.region_setting} to one such as "
        "eu-central-1",
    )


def bad_config_file(case: Case) -> Failure:
    """``ConfigParseError``."""
    # Without the parser's message: it quotes the line, which may contain a secret.
    fault = case.kwargs.get("error")
    lines = [getattr(fault, "lineno", None), *(line for line, _ in getattr(fault, "errors", ()))]
    line = next((f", line {number}," for number in lines if number), "")
    return Failure("bad-input", f"{case.kwargs.get('path')}{line} cannot be parsed: correct it")


def bad_parameters(case: Case) -> Failure:
    """The parameters of a call do not fit the API."""
    said = case.words(case.kwargs.get("report", case.error))
    return Failure("bad-input", f"{case.api.title} does not accept such a request: {said}")


def bad_setting(case: Case) -> Failure:
    """A variable or a setting of the profile is not valid."""
    return Failure(
        "bad-input",
        f"the AWS configuration is not valid ({case.words(case.error)}): check the AWS_ variables, and the profile "
        f"{case.caller.profile} in {config_file(case.caller.environment)}",
    )


def bad_endpoint(case: Case) -> Failure:
    """The URL of an endpoint is not valid."""
    url = str(case.error).partition(": ")[2]
    setting = case.endpoint_setting or "AWS_ENDPOINT_URL"
    return Failure("bad-input", f"{case.words(repr(url))} is not a URL: set {setting} to one such as https://HOST:8443")
