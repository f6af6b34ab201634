# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: binding them, accepting connections, and the limits that connections are subject to."""
