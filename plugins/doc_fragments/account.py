# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The account of a host's tunnels, and how to reach its APIs: for plugins, which read variables and ansible.cfg."""

from __future__ import annotations


class ModuleDocFragment:
    """The same options as in the fragment C(aws), which is for modules."""

    DOCUMENTATION = r"""
options:
  profile:
    description:
      - Named profile in the AWS configuration files. Takes precedence over keys that are set in the environment.
      - Defaults to the environment variable E(AWS_PROFILE).
    type: string
    vars:
      - name: iotops_tunnel_profile
    ini:
      - section: iotops_tunnel
        key: profile
  region:
    description:
      - AWS region of the tunnels, such as V(eu-central-1).
      - Defaults to the environment variable E(AWS_REGION) or E(AWS_DEFAULT_REGION), then to the profile's region.
    type: string
    vars:
      - name: iotops_tunnel_region
    ini:
      - section: iotops_tunnel
        key: region
  access_key:
    description:
      - AWS access key ID.
      - Defaults to the environment variable E(AWS_ACCESS_KEY_ID).
    type: string
    vars:
      - name: iotops_tunnel_access_key
    ini:
      - section: iotops_tunnel
        key: access_key
  secret_key:
    description:
      - AWS secret access key.
      - Defaults to the environment variable E(AWS_SECRET_ACCESS_KEY).
    type: string
    vars:
      - name: iotops_tunnel_secret_key
    ini:
      - section: iotops_tunnel
        key: secret_key
  session_token:
    description:
      - AWS session token, for temporary keys.
      - Defaults to the environment variable E(AWS_SESSION_TOKEN).
    type: string
    vars:
      - name: iotops_tunnel_session_token
    ini:
      - section: iotops_tunnel
        key: session_token
  endpoint_url:
    description:
      - URL of the control API, if the tunneling service is not AWS.
      - Defaults to the environment variable E(AWS_ENDPOINT_URL_IOTSECURETUNNELING).
    type: string
    vars:
      - name: iotops_tunnel_endpoint_url
    ini:
      - section: iotops_tunnel
        key: endpoint_url
  aws_ca_bundle:
    description:
      - File of CA certificates with which to verify the control API.
      - Defaults to the environment variable E(AWS_CA_BUNDLE).
    type: path
    vars:
      - name: iotops_tunnel_aws_ca_bundle
    ini:
      - section: iotops_tunnel
        key: aws_ca_bundle
  validate_certs:
    description:
      - Whether to verify the certificate of the control API. That of the data plane is always verified.
    type: boolean
    default: true
    vars:
      - name: iotops_tunnel_validate_certs
    ini:
      - section: iotops_tunnel
        key: validate_certs
  tunnel_endpoint:
    description:
      - C(HOST:PORT) of the data plane, if the tunneling service is not AWS.
      - Defaults to the environment variable E(AWSIOT_TUNNEL_ENDPOINT).
    type: string
    vars:
      - name: iotops_tunnel_tunnel_endpoint
    ini:
      - section: iotops_tunnel
        key: tunnel_endpoint
  tunnel_capath:
    description:
      - Directory or file of CA certificates with which to verify the data plane.
      - Defaults to the environment variable E(AWSIOT_TUNNEL_CAPATH).
    type: path
    vars:
      - name: iotops_tunnel_tunnel_capath
    ini:
      - section: iotops_tunnel
        key: tunnel_capath
"""
