# SPDX-License-Identifier: Apache-2.0
"""The agent on the device: waits on MQTT for access tokens, and runs a destination proxy for each tunnel."""
