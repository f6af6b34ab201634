# SPDX-License-Identifier: GPL-3.0-or-later
"""An hour of plays, terminals and page loads through twenty devices, with a fault in each minute: ``make soak``.

- :mod:`~soak.environment`: the service, the devices, the controller; made, supervised, and removed.
- :mod:`~soak.load`: what runs through the tunnels all the time, and checks every byte.
- :mod:`~soak.faults`: what goes wrong, and within which time it must be well again.
- :mod:`~soak.record`: what happened, and which of it a fault excuses.
- :mod:`~soak.watch`: memory, descriptors and threads of every process; secrets; what is left over.
- :mod:`~soak.report`: the verdict, as JSON and as a table.
"""
