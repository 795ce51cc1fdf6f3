# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: hosts.config of the whole fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
name: hosts_config
short_description: The text of hosts.config for the whole fleet
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - One address a line, a line feed after each, nothing else. Groups in the order of the experiment, inside a group in
    version-sort order (C(10.0.0.9) before C(10.0.0.10)). A host's rank is its line number less 1.
  - Every trial gets a C(hosts.config) of its own members from P(startline.lab.trials#filter).
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  hosts:
    description: The hosts by member name, as M(startline.lab.fleet) returns them. Only C(address) and C(public_address) are used.
    type: dict
    required: true
  site:
    description: The site whose hosts read it. Left out, each host has the address that its own site knows.
    type: str
"""

EXAMPLES = r"""
- name: Write the addresses of the fleet
  ansible.builtin.copy:
    content: "{{ plan | startline.lab.hosts_config(fleet.hosts, site='eu') }}"
    dest: /etc/startline/hosts.config
    mode: "0644"
"""

RETURN = r"""
_value:
  description: The text of the file.
  type: str
  sample: "10.77.0.4\n10.77.0.5\n"
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._hosts_config import fleet_hosts_config
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format


def hosts_config(plan: dict[str, t.Any], hosts: dict[str, dict[str, t.Any]], site: str | None = None) -> str:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
        return fleet_hosts_config(plan, hosts, site)
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"hosts_config": hosts_config}
