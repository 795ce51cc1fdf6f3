#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action startline.lab.fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet
short_description: Number the hosts of a run and wait until they answer
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Finds the instances of a run by their tag C(startline:run), gives each its index within its group (tag
    C(startline:index), and C(Name)), and waits until every member of the plan is running and its SSH server answers.
  - A host keeps the index it has. New hosts are numbered by private address, lowest first.
  - Past O(deadline), or as soon as a host is known to be gone, it fails and names each missing member and why.
  - One call serves the whole fleet, in all regions; it needs no connection to the hosts but their SSH greeting.
options:
  run_id:
    description: The run whose hosts are meant.
    type: str
    required: true
  plan:
    description: The plan, as M(startline.lab.plan) returns it. Its members are the hosts to wait for.
    type: dict
    required: true
  deadline:
    description: Seconds that the whole fleet has to come up.
    type: float
    default: 300
extends_documentation_fragment:
  - startline.lab.aws
"""

EXAMPLES = r"""
- name: Wait for the fleet
  startline.lab.fleet:
    run_id: "{{ run_id }}"
    plan: "{{ plan }}"
    deadline: 120
    region: us-east-1
  register: fleet
"""

RETURN = r"""
hosts:
  description: The hosts by member name.
  returned: success
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
"""
