# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from tunnelproxy.hub.account import UNKNOWN_ACCOUNT, Account, TunnelKey

ARN = "arn:aws-cn:iot:cn-north-1:123456789012:tunnel/b2de92a3-b8ff-46c0-b0f2-afa28b00cecd"


def test_an_arn_tells_the_account() -> None:
    account = Account.from_arn(ARN)
    assert account == Account("aws-cn", "123456789012", "cn-north-1")
    assert str(account) == "123456789012/cn-north-1"


@pytest.mark.parametrize("endpoint", ["", "https://127.0.0.1:8443"])
@pytest.mark.parametrize("account_id", ["123456789012", ""])
def test_a_key_stands_for_an_account(account_id: str, endpoint: str) -> None:
    account = Account("aws", account_id, "eu-central-1", endpoint)
    assert Account.from_key(account.key) == account


@pytest.mark.parametrize("text", ["", "aws", "aws:12:eu-central-1", "aws:123456789012:", "x:y:z:w"])
def test_other_texts_are_no_keys(text: str) -> None:
    with pytest.raises(ValueError, match="does not name an account"):
        Account.from_key(text)


def test_other_arns_are_refused() -> None:
    with pytest.raises(ValueError, match="is not an ARN of AWS IoT"):
        Account.from_arn("arn:aws:s3:::bucket")


def test_one_account_id_at_two_endpoints_is_two_accounts() -> None:
    assert Account.from_arn(ARN, "https://a:1") != Account.from_arn(ARN, "https://b:1")


def test_messages_say_where_a_thing_is_if_that_is_known() -> None:
    assert str(TunnelKey(Account.from_arn(ARN, "https://10.0.0.1:8443"), "gw")) == (
        "gw in 123456789012/cn-north-1 at 10.0.0.1:8443"
    )
    assert str(TunnelKey(UNKNOWN_ACCOUNT, "gw")) == "gw"
