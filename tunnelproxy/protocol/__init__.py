# SPDX-License-Identifier: Apache-2.0
"""The wire of AWS IoT Secure Tunneling, without sockets, clocks or event loops."""
