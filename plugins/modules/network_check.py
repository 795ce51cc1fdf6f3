#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action plugin startline.lab.network_check."""

from __future__ import annotations

DOCUMENTATION = r"""
module: network_check
short_description: Measure whether the network of trials is the one that was asked for
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Measures round trip, jitter and loss (fping) and rates (iperf3) between the hosts of a run, first without rules, then with
    those of each network that the trials need, and compares with what the experiment asks for.
  - Each measurement is a trial behind the start barrier, C(check-baseline) and C(check-network-1) and so on. What the hosts
    printed is in the run's evidence.
  - A network that is off does not fail the task. M(startline.lab.trial) marks its trials, or does not start them.
  - Runs against the host of the rendezvous, C(plan.rendezvous), and reads what the others have delivered to S3.
attributes:
  check_mode:
    description: Tells what would be measured.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: Measures anew each time; hosts may have changed.
    support: none
  action_group:
    description: Shares the AWS options through C(module_defaults).
    support: full
    membership: [startline.lab.aws]
options:
  plan:
    description: The plan, as M(startline.lab.plan) returns it.
    type: dict
    required: true
  run_id:
    description: The run.
    type: str
    required: true
  hosts:
    description: The hosts by member name, as M(startline.lab.fleet) returns them.
    type: dict
    required: true
  trials:
    description: Ids of the trials that are still to be run. Only their networks are measured. Left out, all.
    type: list
    elements: str
  bucket:
    description: Where the hosts deliver what they have measured.
    type: str
    required: true
extends_documentation_fragment:
  - startline.lab.aws
seealso:
  - module: startline.lab.trial
  - module: startline.lab.netem
"""

EXAMPLES = r"""
- name: Measure the networks of the trials
  startline.lab.network_check:
    plan: "{{ plan }}"
    run_id: "{{ run_id }}"
    hosts: "{{ fleet_hosts }}"
    bucket: "{{ bucket }}"
  delegate_to: "{{ plan.rendezvous }}"
  become: true
  register: network

- name: Run the trials
  startline.lab.trial:
    plan: "{{ plan }}"
    trial_id: "{{ item.trial_id }}"
    attempt: "{{ item.attempt }}"
    run_id: "{{ run_id }}"
    hosts: "{{ fleet_hosts }}"
    checks: "{{ network.checks }}"
    bucket: "{{ bucket }}"
  delegate_to: "{{ plan.rendezvous }}"
  become: true
  loop: "{{ plan | startline.lab.trials(attempts=attempts) }}"
"""

RETURN = r"""
msg:
  description: One line on what was found.
  returned: always
  type: str
  sample: 15 pairs as asked
checks:
  description: What was measured of each network, by its name in the plan.
  returned: always
  type: dict
  contains:
    format:
      description: Version of this.
      type: str
      sample: startline-network/1
    verdict:
      description: V(valid), V(degraded) when something is off, V(invalid) when the trials are not to be started.
      type: str
      sample: valid
    reasons:
      description: What is off, pair by pair, the worst first.
      type: list
      elements: str
    delays:
      description:
        - Where the round trip that was there before was compensated, the delay of each link in force, at the start and from each
          moment of the timeline on.
      type: list
      elements: list
    pairs:
      description:
        - C(from), C(to), C(link) in words, and the C(metrics) of each pair - C(metric), C(unit), what was C(asked) and C(measured),
          the range from C(low) to C(high) that is C(right), and the C(problem) when nothing could be measured.
      type: list
      elements: dict
"""
