# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment by which clients find a service, from a real state directory."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tunnelproxy.service.client_environment import client_environment, export_lines
from tunnelproxy.service.errors import ServiceError
from tunnelproxy.service.state.directory import Endpoints, StateDirectory
from tunnelproxy.service.state.store import Store


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    made = StateDirectory(tmp_path / "it's state")
    made.create()
    return made


def test_a_service_that_never_ran_is_named_with_the_remedy(state: StateDirectory) -> None:
    with pytest.raises(ServiceError, match=r"there is no tunneling service in .*tunnelproxy service run --state-dir"):
        client_environment(state)
    Store(state.database).close()
    with pytest.raises(ServiceError, match="has never been started; start it with"):
        client_environment(state)


@pytest.mark.parametrize("own_certificate", [False, True])
def test_it_says_where_the_service_is_and_whom_to_trust(state: StateDirectory, own_certificate: bool) -> None:
    store = Store(state.database)
    key = store.named_key()
    store.close()
    assert key is not None
    state.write_endpoints(Endpoints("example.com", 1, 2, own_certificate))
    found = client_environment(state)
    assert found["AWS_ENDPOINT_URL_IOTSECURETUNNELING"] == "https://example.com:1"
    assert found["AWSIOT_TUNNEL_ENDPOINT"] == "example.com:2"
    assert found["AWS_ACCESS_KEY_ID"] == key.credentials.access_key_id
    assert found["AWS_SECRET_ACCESS_KEY"] == key.credentials.secret_access_key
    assert ("AWS_CA_BUNDLE" in found, "AWSIOT_TUNNEL_CAPATH" in found) == (not own_certificate,) * 2
    with pytest.raises(ServiceError, match="has no access key nobody; see: tunnelproxy service key list"):
        client_environment(state, "nobody")


def test_values_are_quoted_for_a_shell() -> None:
    value = 'it\'s "$HOME" `a`\\'
    (line,) = export_lines({"A": value}).splitlines()
    assert shlex.split(line) == ["export", f"A={value}"]
