# SPDX-License-Identifier: GPL-3.0-or-later
"""What records are about follows tasks and callbacks, and stays out of others."""

from __future__ import annotations

import asyncio

from peers.event_loop import in_event_loop
from tunnelproxy.log_context import about, set_about


@in_event_loop
async def test_a_task_hands_on_what_it_is_about_and_no_other_learns_of_it() -> None:
    seen: dict[str, dict[str, str]] = {}

    async def child(name: str) -> None:
        set_about(stream=name)
        seen[name] = dict(about())

    async def serve(tunnel: str) -> None:
        set_about(tunnel=tunnel)
        asyncio.get_running_loop().call_soon(lambda: seen.__setitem__(f"callback of {tunnel}", dict(about())))
        await asyncio.gather(child(f"{tunnel}.1"), child(f"{tunnel}.2"))
        seen[tunnel] = dict(about())

    await asyncio.gather(serve("a"), serve("b"))
    assert seen == {name: {"tunnel": name[-1]} for name in ("a", "b", "callback of a", "callback of b")} | {
        name: {"tunnel": name[0], "stream": name} for name in ("a.1", "a.2", "b.1", "b.2")
    }
    assert dict(about()) == {}
