# SPDX-License-Identifier: Apache-2.0
"""MQTT: the delivery of access tokens to things, and the embedded broker."""
