# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: the tunnels of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
name: sshuttle_tunnels
short_description: The tunnels of a run
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - One entry for each private site that hosts of other sites have to reach, with what both ends of the role
    P(startline.lab.sshuttle#role) need. No private site, no entries.
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  hosts:
    description: The hosts by member name, as M(startline.lab.fleet) returns them.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Have the tunnels that start here
  ansible.builtin.include_role:
    name: startline.lab.sshuttle
  vars:
    sshuttle_name: "{{ item.site }}"
    sshuttle_gateway: "{{ item.gateway_address }}"
    sshuttle_networks: "{{ item.networks }}"
    sshuttle_probe: "{{ item.probes[member] }}"
  loop: "{{ plan | startline.lab.sshuttle_tunnels(fleet.hosts) | selectattr('probes', 'contains', member) }}"
"""

RETURN = r"""
_value:
  description:
    - C(networks) are the private addresses of the site's hosts, C(sources) what its login host sees the clients come from,
      C(probes) what each client tries, by member name.
  type: list
  elements: dict
  sample:
    - site: hpc
      gateway: login-0
      gateway_address: 198.18.1.4
      networks: [10.77.0.4, 10.77.16.4]
      sources: [198.18.1.5]
      probes: {cloud-0: "10.77.16.4:22"}
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils import _sshuttle
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format


def sshuttle_tunnels(plan: dict[str, t.Any], hosts: dict[str, dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
        return _sshuttle.tunnels(plan, hosts)
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"sshuttle_tunnels": sshuttle_tunnels}
