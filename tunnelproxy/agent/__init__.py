# SPDX-License-Identifier: Apache-2.0
"""The agent on the device: waits for access tokens on MQTT, and runs a destination proxy for each tunnel."""
