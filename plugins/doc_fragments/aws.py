# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How modules and the inventory reach the APIs of AWS IoT, or of the self-hosted tunneling service."""

from __future__ import annotations


class ModuleDocFragment:
    """Option names are those of the collection C(amazon.aws)."""

    DOCUMENTATION = r"""
options:
  profile:
    description:
      - Named profile in the AWS configuration files. Takes precedence over keys that are set in the environment.
      - Defaults to the environment variable E(AWS_PROFILE).
    type: str
  region:
    description:
      - AWS region of the tunnels, such as V(eu-central-1).
      - Defaults to the environment variable E(AWS_REGION) or E(AWS_DEFAULT_REGION), then to the profile's region.
    type: str
  access_key:
    description:
      - AWS access key ID.
      - Defaults to the environment variable E(AWS_ACCESS_KEY_ID).
    type: str
  secret_key:
    description:
      - AWS secret access key.
      - Defaults to the environment variable E(AWS_SECRET_ACCESS_KEY).
    type: str
  session_token:
    description:
      - AWS session token, for temporary keys.
      - Defaults to the environment variable E(AWS_SESSION_TOKEN).
    type: str
  endpoint_url:
    description:
      - URL of the control API, if the tunneling service is not AWS.
      - Defaults to the environment variable E(AWS_ENDPOINT_URL_IOTSECURETUNNELING).
    type: str
  aws_ca_bundle:
    description:
      - File of CA certificates with which to verify the control API.
      - Defaults to the environment variable E(AWS_CA_BUNDLE).
    type: path
  validate_certs:
    description:
      - Whether to verify the certificate of the control API, which is the default. That of the data plane is always
        verified.
    type: bool
  tunnel_endpoint:
    description:
      - C(HOST:PORT) of the data plane, if the tunneling service is not AWS.
      - Defaults to the environment variable E(AWSIOT_TUNNEL_ENDPOINT).
    type: str
  tunnel_capath:
    description:
      - Directory or file of CA certificates with which to verify the data plane.
      - Defaults to the environment variable E(AWSIOT_TUNNEL_CAPATH).
    type: path
requirements:
  - boto3 >= 1.34, for the Python that runs Ansible (the hub calls the APIs with it)
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
  - Options that select the account (O(profile), O(region), O(access_key), O(endpoint_url) and so on) default to the
    variable C(iotops_tunnel_<option>) of the host that the task is for, such as C(iotops_tunnel_profile), then to the
    C(environment) of the task, to that of Ansible, and to the section C([iotops_tunnel]) of C(ansible.cfg). One play
    can therefore manage hosts in several accounts.
  - Credentials are never mixed. If one of these sources sets a profile or keys, those of later sources are ignored.
  - The hub makes the API calls with the environment of the task, whatever environment it was started with. Keys and
    tokens never appear on a command line.
"""
