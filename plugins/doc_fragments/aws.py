# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module or plugin reaches the APIs of AWS IoT, or of the self-hosted tunneling service."""

from __future__ import annotations


class ModuleDocFragment:
    """Option names are those of the C(amazon.aws) collection."""

    DOCUMENTATION = r"""
options:
  profile:
    description:
      - Named profile of the AWS configuration files.
      - Takes the place of keys that are set in the environment.
      - The environment variable E(AWS_PROFILE) is used when this is not set.
    type: str
  region:
    description:
      - AWS region of the tunnels, such as V(eu-central-1).
      - The environment variables E(AWS_REGION) or E(AWS_DEFAULT_REGION), else the profile, is used without it.
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
      - Whether the certificate of the control API is verified.
      - The hub always verifies it.
    type: bool
    default: true
requirements:
  - python >= 3.10
  - boto3 >= 1.34
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
  - Keys never reach a command line or a module's arguments. The action plugin hands them over in a file of mode 0600.
"""
