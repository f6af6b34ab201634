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
      - Takes precedence over keys that are set in the environment.
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
      - AWS session token, for temporary keys.
      - The environment variable E(AWS_SESSION_TOKEN) is used when this is not set.
    type: str
  endpoint_url:
    description:
      - URL of the control API, for a tunneling service other than AWS.
      - The environment variable E(AWS_ENDPOINT_URL_IOTSECURETUNNELING) is used when this is not set.
    type: str
  aws_ca_bundle:
    description:
      - File with CA certificates for verifying the control API's certificate.
      - The environment variable E(AWS_CA_BUNDLE) is used when this is not set.
    type: path
  validate_certs:
    description:
      - Whether to verify the control API's certificate, which is the default. The data plane's certificate is always
        verified.
    type: bool
  tunnel_endpoint:
    description:
      - C(HOST:PORT) of the data plane, for a tunneling service other than AWS.
      - The environment variable E(AWSIOT_TUNNEL_ENDPOINT) is used when this is not set.
    type: str
  tunnel_capath:
    description:
      - Directory or file with CA certificates for verifying the data plane's certificate.
      - The environment variable E(AWSIOT_TUNNEL_CAPATH) is used when this is not set.
    type: path
requirements:
  - boto3 >= 1.34 (in the Python that runs Ansible; the hub uses it to call the APIs)
"""

    MODULE = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/iotops.tunnel.aws) in C(module_defaults) to set these options once for all these modules.
    support: full
    membership:
      - iotops.tunnel.aws
notes:
  - If an option that selects the account (O(profile), O(region), O(access_key), O(endpoint_url) and so on) is not set,
    its value comes from the first of these places that has one. They are the host's variable C(iotops_tunnel_<option>),
    such as C(iotops_tunnel_profile), the task's C(environment), Ansible's environment, and the section
    C([iotops_tunnel]) of C(ansible.cfg). So one play can work on hosts in several accounts.
  - Credentials from different places are never mixed. If one place sets a profile or keys, those of the later places
    are ignored.
  - The hub makes the calls with the task's environment, whatever environment it was started with. Keys and tokens never
    appear on a command line.
"""
