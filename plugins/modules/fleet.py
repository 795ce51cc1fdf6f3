#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action startline.lab.fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet
short_description: Find or count the hosts of a run, see that they answer, or that nothing is left of them
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Finds the instances of a run by their tag C(startline:run), gives each its index within its group (tag
    C(startline:index), and C(Name)), and waits until every member of the plan is running and its SSH server answers.
  - A host keeps the index it has. New hosts are numbered by private address, lowest first.
  - Past O(deadline), or as soon as a host is known to be gone, it fails and names each missing member and why.
  - One call serves the whole fleet, in all regions; it needs no connection to the hosts but their SSH greeting. Hosts
    behind a site's gateway are asked through it, by C(ssh).
  - With O(state=counted) it only says how many hosts each group of the plan lacks.
  - With O(state=found) it says which runs have something in which region, by the tags of networks and keys.
  - With O(state=absent) it removes nothing. It looks at the account for anything that still carries the run's tag, and
    fails with the ids of what is left.
options:
  run_id:
    description: The run whose hosts are meant. May be left out when O(state=found).
    type: str
  state:
    description: What has to be true.
    type: str
    choices: [counted, answering, found, absent]
    default: answering
  plan:
    description:
      - The plan, as M(startline.lab.plan) returns it. Its members are the hosts to wait for.
      - Required when O(state=counted) or O(state=answering).
    type: dict
  experiment:
    description: The experiment whose runs are meant when O(state=found). Left out, all.
    type: str
  regions:
    description:
      - Regions to look at when O(state=found) or O(state=absent). Left out or empty, every region that the account has
        enabled, passing over those that it is not let into.
    type: list
    elements: str
  deadline:
    description: Seconds that the whole fleet has to come up.
    type: float
    default: 300
  login_user:
    description: Who logs in at gateways. Required when O(state=answering) and a site of the plan has one.
    type: str
  private_key_file:
    description:
      - The run's private key on the controller. Host keys are kept beside it, in C(known_hosts.<instance id>).
      - Required when O(state=answering) and a site of the plan has a gateway.
    type: path
extends_documentation_fragment:
  - startline.lab.aws
"""

EXAMPLES = r"""
- name: See how many hosts are to be launched
  startline.lab.fleet:
    run_id: "{{ run_id }}"
    state: counted
    plan: "{{ plan }}"
    region: us-east-1
  register: counted

- name: Wait for the fleet
  startline.lab.fleet:
    run_id: "{{ run_id }}"
    plan: "{{ plan }}"
    deadline: 120
    region: us-east-1
  register: fleet

- name: Find what there is of an experiment
  startline.lab.fleet:
    state: found
    experiment: dkg
    region: us-east-1
  register: found

- name: Prove that nothing is left
  startline.lab.fleet:
    run_id: "{{ run_id }}"
    state: absent
    regions: [us-east-1]
"""

RETURN = r"""
missing:
  description: How many hosts each group lacks.
  returned: O(state=counted)
  type: dict
  sample:
    party: 8
    blockchain: 0
runs:
  description: The regions of each run that has something there.
  returned: O(state=found)
  type: dict
  sample: {dkg-20261121T093000Z-3fa9: [us-east-1]}
left:
  description: Ids of what is left. Always empty but in check mode, where leftovers do not fail the task.
  returned: O(state=absent)
  type: list
  elements: str
  sample: []
hosts:
  description:
    - The hosts by member name. C(address) is private; C(public_address) may be empty.
    - Of a host that is reached through its site's gateway, C(gateway) is the member, C(gateway_address) its public
      address, and C(nat_address) the public address that the host is seen to come from. Of others these are empty.
  returned: O(state=answering)
  type: dict
  sample:
    party-0:
      name: party-0
      group: party
      index: 0
      site: default
      instance_id: i-0123456789abcdef0
      region: us-east-1
      state: running
      reason: ""
      address: 10.77.0.4
      public_address: 198.18.1.0
      login_address: 198.18.1.0
      gateway: ""
      gateway_address: ""
      nat_address: ""
"""
