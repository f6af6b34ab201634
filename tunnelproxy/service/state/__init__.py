# SPDX-License-Identifier: Apache-2.0
"""The state of the service: its database, its directory, and its certificates."""
