# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: who is let into a site."""

from __future__ import annotations

DOCUMENTATION = r"""
name: peers
short_description: The public addresses that each site of a plan lets in
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - For each site that has hosts, the addresses from which the hosts of the other sites come. Those are their own public
    addresses, or that of their NAT gateway.
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  hosts:
    description: The hosts by member name, as M(startline.lab.fleet) returns them.
    type: dict
    required: true
  region:
    description: Region of the sites that name none.
    type: str
"""

EXAMPLES = r"""
- name: Let in the hosts of the other sites
  amazon.aws.ec2_security_group:
    name: "{{ run_id }}"
    description: Hosts of a run
    rules:
      - proto: all
        cidr_ip: "{{ item.addresses }}"
    region: "{{ item.region }}"
  loop: "{{ plan | startline.lab.peers(fleet.hosts, 'us-east-1') }}"
  loop_control:
    label: "{{ item.name }}"
"""

RETURN = r"""
_value:
  description: The sites, in the order of the experiment.
  type: list
  elements: dict
  sample:
    - name: us
      region: us-east-1
      addresses: [198.51.100.7/32]
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils import _launch
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format


def peers(
    plan: dict[str, t.Any], hosts: dict[str, dict[str, t.Any]], region: str | None = None
) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
        return _launch.peers(plan, hosts, region)
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"peers": peers}
