# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The options of every action of ours that talks to AWS: amazon.aws's names, so that one C(module_defaults) serves both."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  region:
    description: AWS region. Without it boto3's own chain decides.
    type: str
  endpoint_url:
    description: Endpoint that answers in place of AWS, for instance the local cloud's.
    type: str
  access_key:
    description: Access key. Without it boto3's own chain decides (environment, profile, SSO, instance role).
    type: str
  secret_key:
    description: Secret key that belongs to O(access_key).
    type: str
  session_token:
    description: Session token of temporary credentials.
    type: str
requirements:
  - boto3 >= 1.35
"""
