# SPDX-License-Identifier: GPL-3.0-or-later
"""Any message of the protocol, for property-based tests."""

from __future__ import annotations

from hypothesis import strategies as st

from tunnelproxy.protocol.framing import Message

__all__ = ["messages"]

service_ids = st.text("abcXYZ019:_-", min_size=1, max_size=128)
messages = st.builds(
    Message,
    type=st.sampled_from(Message.Type.values()),
    streamId=st.integers(0, 2**31 - 1),
    ignorable=st.booleans(),
    payload=st.binary(max_size=2000),
    serviceId=service_ids,
    availableServiceIds=st.lists(service_ids, max_size=3),
    connectionId=st.integers(0, 2**32 - 1),
)
