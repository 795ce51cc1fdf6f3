# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: the places of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
name: sites
short_description: The sites of a plan that have hosts
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - The places where a run needs a network, each with its region, the network and the subnets that hold its hosts.
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  region:
    description: Region of the sites that name none.
    type: str
"""

EXAMPLES = r"""
- name: Create the network of each site
  amazon.aws.ec2_vpc_net:
    name: "{{ run_id }}"
    cidr_block: "{{ item.cidr }}"
    region: "{{ item.region }}"
  loop: "{{ plan | startline.lab.sites('us-east-1') }}"
"""

RETURN = r"""
_value:
  description: The sites, in the order of the experiment.
  type: list
  elements: dict
  sample:
    - name: default
      region: us-east-1
      cidr: 10.77.0.0/16
      subnet: 10.77.0.0/20
      private_subnet: ""
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils import _launch
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format


def sites(plan: dict[str, t.Any], region: str | None = None) -> list[dict[str, str]]:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
        return _launch.sites(plan, region)
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"sites": sites}
