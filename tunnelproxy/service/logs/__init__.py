# SPDX-License-Identifier: Apache-2.0
"""What the service writes down: the audit log, refused requests, and unexpected errors."""
