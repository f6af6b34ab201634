# SPDX-License-Identifier: Apache-2.0
"""The hub: one process per user and controller that holds every tunnel, and hands out streams over a Unix socket."""
