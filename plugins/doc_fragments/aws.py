# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module or the inventory reaches the APIs of AWS IoT, or of the self-hosted tunneling service."""

from __future__ import annotations


class ModuleDocFragment:
    """Option names are those of the C(amazon.aws) collection."""

    DOCUMENTATION = r"""
options:
  profile:
    description:
      - Named profile of the AWS configuration files.
      - Replaces keys that are set in the environment.
      - The environment variable E(AWS_PROFILE) is used when this is not set.
    type: str
  region:
    description:
      - AWS region of the tunnels, such as V(eu-central-1).
      - The environment variables E(AWS_REGION) or E(AWS_DEFAULT_REGION), then the profile, are used when this is not
        set.
    type: str
  access_key:
    description:
      - AWS access key ID.
      - The environment variable E(AWS_ACCESS_KEY_ID) is used when this is not set.
    type: str
  secret_key:
    description:
      - AWS secret access key.
      - The environment variable E(AWS_SECRET_ACCESS_KEY) is used when this is not set.
    type: str
  session_token:
    description:
      - AWS session token, with temporary keys.
      - The environment variable E(AWS_SESSION_TOKEN) is used when this is not set.
    type: str
  endpoint_url:
    description:
      - URL of the control API, for a tunneling service other than AWS.
      - The environment variable E(AWS_ENDPOINT_URL_IOTSECURETUNNELING) is used when this is not set.
    type: str
  aws_ca_bundle:
    description:
      - File with the certificates of the authorities that are trusted for the control API.
      - The environment variable E(AWS_CA_BUNDLE) is used when this is not set.
    type: path
  validate_certs:
    description:
      - Whether the certificate of the control API is verified, which it is by default. That of the data plane always
        is.
    type: bool
  tunnel_endpoint:
    description:
      - C(HOST:PORT) of the data plane, for a tunneling service other than AWS.
      - The environment variable E(AWSIOT_TUNNEL_ENDPOINT) is used when this is not set.
    type: str
  tunnel_capath:
    description:
      - Directory or file of the certificates of the authorities that are trusted for the data plane.
      - The environment variable E(AWSIOT_TUNNEL_CAPATH) is used when this is not set.
    type: path
requirements:
  - boto3 >= 1.34 (the hub calls the APIs with it, with the Python that runs Ansible)
"""

    MODULE = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/iotops.tunnel.aws) in C(module_defaults) to set these options once for all its modules.
    support: full
    membership:
      - iotops.tunnel.aws
notes:
  - An option that says which account is meant (O(profile), O(region), O(access_key), O(endpoint_url) and so on) and is
    not set is taken from the variable C(iotops_tunnel_<option>) of the host that the task is for, such as
    C(iotops_tunnel_profile), then from the C(environment) of the task, from that of Ansible, and from the section
    C([iotops_tunnel]) of C(ansible.cfg), so that one play works on hosts in several accounts.
  - Credentials are never mixed. Where one of these places sets a profile or keys, those of the later ones do not count.
  - The hub makes the calls with the environment of the task, whatever it was started with. Keys and tokens never reach
    a command line.
"""
