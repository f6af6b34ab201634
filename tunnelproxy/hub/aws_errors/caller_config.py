# SPDX-License-Identifier: Apache-2.0
"""The caller's environment and AWS configuration files: which profile is in use, and how to renew its credentials."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from botocore.configloader import load_config, raw_config_parse
from botocore.exceptions import BotoCoreError

__all__ = ["CONTAINER_VARIABLES", "SSO_SETTINGS", "CallerConfig", "config_file"]


SSO_SETTINGS = ("sso_session", "sso_start_url", "sso_role_name", "sso_account_id")
CONTAINER_VARIABLES = frozenset({"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"})


@dataclass(frozen=True)
class CallerConfig:
    """The caller's environment and AWS configuration files; these are read again for each error, as they change."""

    environment: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> CallerConfig:
        profiles: dict[str, dict[str, Any]] = {}
        # An unreadable file is either not the failure to explain, or its own error names it.
        with suppress(BotoCoreError, OSError, ValueError):
            profiles.update(load_config(config_file(environment))["profiles"])
        with suppress(BotoCoreError, OSError, ValueError):
            for name, settings in raw_config_parse(_credentials_file(environment)).items():
                profiles.setdefault(name, {}).update(settings)
        return cls(environment, profiles)

    @property
    def variable(self) -> str:
        """The environment variable that names the profile, as botocore looks for it."""
        return "AWS_DEFAULT_PROFILE" if "AWS_DEFAULT_PROFILE" in self.environment else "AWS_PROFILE"

    @property
    def named(self) -> str:
        """The profile that the environment names, if any."""
        return self.environment.get(self.variable, "")

    @property
    def profile(self) -> str:
        """The profile in use."""
        return self.named or "default"

    @property
    def files(self) -> str:
        """Where profiles are looked for."""
        return f"{config_file(self.environment)} and {_credentials_file(self.environment)}"

    def chain(self) -> list[str]:
        """The profile in use, and those that it takes credentials from."""
        names: list[str] = []
        name = self.profile
        while name in self.profiles and name not in names:
            names.append(name)
            name = self.profiles[name].get("source_profile", "")
        return names

    def profile_with(self, *settings: str) -> str:
        """The profile, of those involved, that has one of these settings; else the one in use."""
        found = (name for name in self.chain() if any(setting in self.profiles[name] for setting in settings))
        return next(found, self.profile)

    def setting(self, name: str) -> str:
        """A setting of a profile that is involved; empty if none has it."""
        return str(self.profiles.get(self.profile_with(name), {}).get(name, ""))

    @property
    def keys(self) -> str:
        """The credentials in use, as part of a sentence."""
        if self.environment.get("AWS_ACCESS_KEY_ID"):
            return "the AWS keys in AWS_ACCESS_KEY_ID"
        if self.named or "default" in self.profiles:
            return f"the AWS keys of the profile {self.profile}"
        if CONTAINER_VARIABLES & self.environment.keys():
            return "the AWS keys of the container's role"
        return "the AWS keys"

    @property
    def renewal(self) -> str:
        """How to renew credentials that have expired."""
        if self.environment.get("AWS_ACCESS_KEY_ID"):
            return "replace AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or unset them"
        if self.setting("sso_role_name") or self.setting("sso_session"):
            return self.sso_login
        if self.setting("login_session"):
            return self.login
        return "log in again, or renew them"

    @property
    def sso_login(self) -> str:
        """The command that starts an SSO session."""
        return f"run `aws sso login --profile {shlex.quote(self.profile_with(*SSO_SETTINGS))}`"

    @property
    def login(self) -> str:
        """The command that starts a session of the AWS console's login."""
        return f"run `aws login --profile {shlex.quote(self.profile_with('login_session'))}`"

    @property
    def region_setting(self) -> str:
        """Which setting changes the region."""
        set_by = [name for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if self.environment.get(name)]
        if not set_by and self.profiles.get(self.profile, {}).get("region"):
            return f"the region of the profile {self.profile} ({self.set_region})"
        return set_by[0] if set_by else "AWS_REGION"

    @property
    def set_region(self) -> str:
        """The command that sets the region of the profile in use."""
        return f"`aws configure set region REGION --profile {shlex.quote(self.profile)}`"


def config_file(environment: Mapping[str, str]) -> str:
    return _expanded(environment.get("AWS_CONFIG_FILE") or "~/.aws/config", environment)


def _credentials_file(environment: Mapping[str, str]) -> str:
    return _expanded(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", environment)


def _expanded(path: str, environment: Mapping[str, str]) -> str:
    home = environment.get("HOME")
    return home + path[1:] if home and path.startswith("~/") else os.path.expanduser(path)
