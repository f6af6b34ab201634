# SPDX-License-Identifier: Apache-2.0
"""The data plane: clients connect to it over WebSocket, and it relays messages between the two ends of a tunnel."""
