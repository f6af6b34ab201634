# SPDX-License-Identifier: Apache-2.0
"""One end of a tunnel: the source and the destination proxy, and what they share."""
