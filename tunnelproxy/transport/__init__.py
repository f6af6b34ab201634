# SPDX-License-Identifier: Apache-2.0
"""The event loop's side of a proxy: WebSocket link, TLS, local sockets, flow, and reconnecting."""
