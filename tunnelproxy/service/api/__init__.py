# SPDX-License-Identifier: Apache-2.0
"""The control API: signed requests, authorization, and the operations on tunnels and things."""
