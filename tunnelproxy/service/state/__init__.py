# SPDX-License-Identifier: Apache-2.0
"""The service's state: its database, directory and certificates."""
