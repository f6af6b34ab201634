# SPDX-License-Identifier: Apache-2.0
"""The tunneling service: a control API and a data plane that speak the protocols of AWS IoT Secure Tunneling.

Who knows whom, from the outside in: ``server`` assembles one process; ``control_api`` (HTTPS) checks signatures
(``sigv4``) and input (``validation``) and calls ``operations``; ``data_plane`` (WSS) lets ends in (``handshake``,
``admission``), checks what they send (``frame_rules``) and hands it to their ``relay``. Both work on one ``store``.
"""
