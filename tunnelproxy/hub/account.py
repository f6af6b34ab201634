# SPDX-License-Identifier: Apache-2.0
"""Where a tunnel was opened: an AWS account in one region, or a self-hosted tunneling service.

Two things with the same name in two accounts are two devices. So everything about a tunnel is keyed by both.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["UNKNOWN_ACCOUNT", "Account", "TunnelKey"]

_ARN = re.compile(r"arn:(?P<partition>[a-z-]+):iot:(?P<region>[a-z0-9-]+):(?P<account_id>\d{12}):")
_KEY = re.compile(r"(?P<partition>[a-z-]+):(?P<account_id>\d{12})?:(?P<region>[a-z0-9-]+)(?:@(?P<endpoint>.+))?\Z")


class Account(NamedTuple):
    """An account in a region.

    Attributes:
        account_id: twelve digits; empty if a self-hosted service does not reveal it.
        endpoint: the URL of the control API, if it is not AWS's. A copy of a service's state, for example one that was
            restored for tests, has the same account ID but is a different account.
    """

    partition: str
    account_id: str
    region: str
    endpoint: str = ""

    @classmethod
    def from_arn(cls, arn: str, endpoint: str = "") -> Account:
        """The account in the ARN of a tunnel or thing.

        Raises:
            ValueError: it is not an ARN of AWS IoT.
        """
        found = _ARN.match(arn)
        if found is None:
            raise ValueError(f"{arn!r} is not an ARN of AWS IoT")
        return cls(**found.groupdict(), endpoint=endpoint)

    @classmethod
    def from_key(cls, key: str) -> Account:
        """Parse what :attr:`key` returns.

        Raises:
            ValueError: it is not a key.
        """
        found = _KEY.match(key)
        if found is None:
            raise ValueError(f"{key!r} does not name an account")
        return cls(found["partition"], found["account_id"] or "", found["region"], found["endpoint"] or "")

    @property
    def key(self) -> str:
        """Its name in files and requests: one word."""
        at = f"@{self.endpoint}" if self.endpoint else ""
        return f"{self.partition}:{self.account_id}:{self.region}{at}"

    def __str__(self) -> str:
        """Its name in messages, such as ``123456789012/eu-central-1``."""
        at = f" at {self.endpoint.partition('://')[2]}" if self.endpoint else ""
        return f"{self.account_id or 'unknown account'}/{self.region}{at}"


UNKNOWN_ACCOUNT = Account("", "", "")
"""The account of a tunnel from an earlier release, until a caller asks for it who may describe it."""


class TunnelKey(NamedTuple):
    """The key of a tunnel in the hub."""

    account: Account
    thing: str

    def __str__(self) -> str:
        return f"{self.thing} in {self.account}" if self.account != UNKNOWN_ACCOUNT else self.thing
