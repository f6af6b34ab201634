# SPDX-License-Identifier: GPL-3.0-or-later
"""An hour of plays, terminals and page loads on twenty devices, with one fault a minute: ``make soak``.

- :mod:`~soak.testbed`: the service, the devices, and the controller: set up, supervised, and removed.
- :mod:`~soak.load`: plays, terminals and page loads that run through the tunnels all the time and verify every byte.
- :mod:`~soak.faults`: the faults, what each may affect, and how soon everything must have recovered.
- :mod:`~soak.record`: completed work, failures, and which failures a fault excuses.
- :mod:`~soak.watch`: memory, descriptors and threads of every process; leaked secrets; leftovers.
- :mod:`~soak.report`: the verdict, as JSON and as a table.
"""
