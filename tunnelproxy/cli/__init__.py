# SPDX-License-Identifier: Apache-2.0
"""The one console script, ``tunnelproxy``."""
