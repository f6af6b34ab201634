# SPDX-License-Identifier: Apache-2.0
"""The service's records: the audit log, refused requests, and unexpected errors."""
