# SPDX-License-Identifier: GPL-3.0-or-later
"""What a tunnel costs, measured beside what one would use instead: ``make bench``."""
