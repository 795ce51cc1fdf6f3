# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter: what each host of a trial does with what it sends."""

from __future__ import annotations

DOCUMENTATION = r"""
name: netem_rules
short_description: What each host of a trial does with what it sends
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Makes the rules of M(startline.lab.netem) for every host of a trial, from the links that the plan has for it.
  - A host that shapes nothing has no rules, so that those of the trial before do not stay. Hosts of which no address is
    known are passed over. An experiment without a network has no entries.
options:
  _input:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  trial_id:
    description: The trial. Left out, all hosts of the plan, whose trials then must have one network.
    type: str
  hosts:
    description: The hosts by member name, as M(startline.lab.fleet) returns them.
    type: dict
    required: true
  rendezvous_port:
    description: Port of the rendezvous, which is never shaped.
    type: int
    default: 7447
"""

EXAMPLES = r"""
- name: Shape the network of the trial
  startline.lab.netem:
    rules: "{{ item.rules }}"
    exempt: "{{ item.exempt }}"
  delegate_to: "{{ item.member }}"
  become: true
  loop: "{{ plan | startline.lab.netem_rules(trial_id='r1', hosts=fleet.hosts) }}"
  loop_control:
    label: "{{ item.member }}"
"""

RETURN = r"""
_value:
  description: One entry a host, with C(member), and C(rules) and C(exempt) as M(startline.lab.netem) takes them.
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.startline.lab.plugins.plugin_utils import _netem
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError
from ansible_collections.startline.lab.plugins.plugin_utils._plan import check_format


def netem_rules(
    plan: dict[str, t.Any],
    hosts: dict[str, dict[str, t.Any]],
    trial_id: str | None = None,
    rendezvous_port: int = 7447,
) -> list[dict[str, t.Any]]:
    """See DOCUMENTATION."""
    try:
        check_format(plan)
    except StartlineError as exc:
        raise AnsibleFilterError(str(exc)) from exc
    trials = [trial for trial in plan["trials"] if trial_id in (None, trial["trial_id"])]
    if not trials:
        raise AnsibleFilterError(f"the plan has no trial {trial_id}")
    if len({trial["network"] for trial in trials}) > 1:
        raise AnsibleFilterError("the network differs from trial to trial, so it cannot be shaped once for all of them")
    if not plan["networks"]:
        return []
    trial = trials[0] if trial_id else {**trials[0], "members": [member["name"] for member in plan["members"]]}
    exempt = _netem.exemptions(rendezvous_port)
    rules = _netem.host_rules(plan, trial, hosts)
    return [{"member": member, "rules": own, "exempt": exempt} for member, own in rules.items()]


class FilterModule:
    """Ansible's registration."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file."""
        return {"netem_rules": netem_rules}
