# SPDX-License-Identifier: Apache-2.0
"""The network code that proxies, agent and service share: connections, TLS, HTTP proxies, MQTT. It knows no tunnels."""
