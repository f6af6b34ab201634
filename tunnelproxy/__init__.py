# SPDX-License-Identifier: Apache-2.0
"""Proxies, hub and tunneling service for AWS IoT Secure Tunneling."""

__all__ = ["__version__"]

__version__ = "0.1.0"
