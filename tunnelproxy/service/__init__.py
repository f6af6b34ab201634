# SPDX-License-Identifier: Apache-2.0
"""The tunneling service: a control API and a data plane that speak the protocols of AWS IoT Secure Tunneling.

``server`` assembles a process. ``api`` (HTTPS) verifies signatures, authorizes requests and carries out the operations
on tunnels and things. ``data_plane`` (WSS) admits clients and relays what they send to the other end of their tunnel.
``mqtt`` delivers access tokens to things. All of them use ``state`` (database, directory, certificates), ``listening``
(TLS ports) and ``logs``, which depend on none of the others.
"""
