# SPDX-License-Identifier: Apache-2.0
"""The control API: signed requests, who may call what, and the operations on tunnels and things."""
