# SPDX-License-Identifier: Apache-2.0
"""MQTT: how devices get their tokens, and the embedded broker."""
