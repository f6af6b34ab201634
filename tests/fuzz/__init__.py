# SPDX-License-Identifier: GPL-3.0-or-later
"""Coverage-guided fuzzing of the framing and the session: ``make fuzz``."""
