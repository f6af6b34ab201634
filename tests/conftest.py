# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

from peers.shared import shared_folder

# Peers run on the loopback, where an HTTP proxy of this machine's user does not lead.
for name in (
    "https_proxy",
    "HTTPS_PROXY",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
):
    os.environ.pop(name, None)

# Before the workers of pytest-xdist start, so that they all have the same one.
shared_folder()

# HYPOTHESIS_PROFILE=thorough looks for counterexamples for minutes, the default for seconds.
settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=3000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
