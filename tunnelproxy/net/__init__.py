# SPDX-License-Identifier: Apache-2.0
"""What proxies, agent and service share of the network: connections, TLS, HTTP proxies, MQTT. It knows no tunnels."""
